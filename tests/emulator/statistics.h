// Counts, for each instruction of a kernel, what its accesses cost a GPU's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "memory.h"

namespace cnnext::emulator {

enum class Space { kGlobal, kShared };

/// The accesses of one width from one line of source.
struct LineStatistics {
  std::string file;
  int line;
  Space space;
  Access access;
  int bytes;         // of a thread's access
  int64_t accesses;  // by threads
  int64_t requests;  // by warps: one for all lanes that execute the instruction together
  int64_t cost;      // sectors of 32 bytes (global), passes through the 32 banks (shared)
  int64_t ideal;     // the least cost of the same requests, had their lanes accessed the same bytes side by side
};

/// Off at first, since it slows kernels down.
void collect_statistics(bool on);

/// Since the last call of `clear_statistics`, ordered by file and line.
std::vector<LineStatistics> statistics();
void clear_statistics();

void count_access(Space space, Access access, uintptr_t address, size_t bytes, const void* return_address);
void begin_block_statistics();
void end_block_statistics();

}  // namespace cnnext::emulator
