// What watches the memory that kernels use. memory_plain.cpp checks alignment alone; memory_checked.cpp knows every
// buffer and every access.
#pragma once

#include <cstddef>
#include <cstdint>

#include "place.h"

namespace cnnext::emulator {

enum class Access { kRead, kWrite };

/// Fails if the thread that runs now must not access these bytes.
void check_access(const void* address, size_t bytes, Access access, const Place& place);

/// The same without a demand on alignment: a structure, which a GPU copies in parts.
void check_range(const void* address, size_t bytes, Access access, const Place& place);

/// The same as check_access for what no load or store instruction does: not in the statistics.
void check_uncounted(const void* address, size_t bytes, Access access, const Place& place);

[[noreturn]] void fail_misaligned(const void* address, size_t bytes, const Place& place);

// --- Global memory: what a launch may access. Without an effect but in the checked build. ---

/// `name` appears in messages.
void register_buffer(uintptr_t address, size_t bytes, bool writable, const char* name);
void clear_buffers();

// --- Shared memory. ---

void memory_gets_shared_array(const void* address, size_t bytes, const char* name);
void memory_drops_shared_arrays();

/// A cp.async to these bytes starts, and is waited for.
void copy_starts(const void* shared, size_t bytes, const Place& place);
void copy_lands(const void* shared, size_t bytes);

constexpr size_t kTensorPieceBytes = 16;

/// A tensor copy to a piece starts, and lands; an mbarrier, by its number in the block, knows of it.
void tensor_copy_starts(const void* shared, const Place& place);
void tensor_copy_lands(const void* shared, int barrier, const Place& place);

// --- What orders the accesses of different threads. ---

void memory_begins_launch();
void memory_begins_block();
void memory_ends_block();
void memory_passes_barrier();
void memory_joins_lanes(int warp, unsigned mask);

/// The block gets another mbarrier.
void memory_gets_barrier();

/// What the thread that runs now has done, or the copies that have landed, comes before the end of the barrier's phase.
void memory_releases(int barrier);
void memory_releases_copies(int barrier);
void memory_ends_phase(int barrier);

/// What came before the last end of a phase comes before what the thread does next.
void memory_acquires(int barrier);

}  // namespace cnnext::emulator
