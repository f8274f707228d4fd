// The shared memory of the block that runs now: one arena, filled anew for each block with bytes that are NaN in every
// floating-point type. Between arrays lie gaps that no array owns.
#pragma once

#include <cstddef>

#include "place.h"

namespace cnnext::emulator {

constexpr size_t kMaxSharedBytes = 227 * 1024;  // of a block
constexpr size_t kMaxStaticBytes = 48 * 1024;

/// Whether an address is one of shared memory, or of the gaps in it.
bool in_shared_memory(const void* address);

/// As the hardware addresses it, and back; fails if the `bytes` there are not in shared memory.
unsigned shared_address(const void* address);
unsigned char* shared_pointer(unsigned address, size_t bytes, const Place& place);

void begin_shared_memory(size_t dynamic_bytes);

void* dynamic_shared();

/// The static array of this block that `tag`, an address, stands for; the first call of a block makes it.
void* static_shared(const void* tag, size_t bytes, const char* name);

}  // namespace cnnext::emulator
