#include "happens_before.h"

#include <algorithm>

namespace cnnext::emulator {

void HappensBefore::begin_block() { block_epoch_ = ++epoch_; }

void HappensBefore::join_lanes(int warp, unsigned mask) {
  const auto lanes = known_ + warp * kWarp;
  ++collectives_;
  // Each lane now knows what any of them knew, and everything that they have done themselves.
  uint32_t all[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (int i = 0; i < kWarp; ++i) all[i] = std::max(all[i], lanes[lane][i]);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) all[lane] = collectives_;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) std::copy_n(all, kWarp, lanes[lane]);
  }
}

bool HappensBefore::reads_are_ordered(const Cell& cell, int thread, int& other) const {
  other = -1;
  if (cell.read_by_others || (cell.read_epoch != 0 && cell.read_epoch < block_epoch_)) return false;
  other = cell.reader;
  if (cell.read_epoch != epoch_) return true;
  if (cell.many_warps || cell.reader / kWarp != thread / kWarp) return false;
  uint32_t others = cell.read_lanes & ~(1u << thread % kWarp);
  for (; others != 0; others &= others - 1) {
    other = thread / kWarp * kWarp + __builtin_ctz(others);
    if (!knows(thread, other, cell.read_time)) return false;
  }
  return true;
}

void HappensBefore::record_write(Cell& cell, int thread, int32_t code) const {
  cell.write_epoch = epoch_;
  cell.write_time = time_of(thread);
  cell.write_code = code;
  cell.writer = static_cast<uint16_t>(thread);
}

void HappensBefore::record_read(Cell& cell, int thread, int32_t code) const {
  const uint32_t lane = 1u << thread % kWarp, time = time_of(thread);
  if (cell.read_epoch != epoch_) {
    cell.read_by_others |= cell.read_epoch != 0 && cell.read_epoch < block_epoch_;
    cell.read_epoch = epoch_;
    cell.read_lanes = 0;
    cell.many_warps = false;
  } else if (cell.reader / kWarp != thread / kWarp) {
    cell.many_warps = true;
    return;
  } else if (time > cell.read_time) {
    // What this read is ordered after need not be remembered: what is ordered after this read is ordered after it too.
    for (uint32_t lanes = cell.read_lanes; lanes != 0; lanes &= lanes - 1) {
      const int other = __builtin_ctz(lanes);
      if (known_[thread][other] > cell.read_time) cell.read_lanes &= ~(1u << other);
    }
  }
  const bool alone = (cell.read_lanes & ~lane) == 0;
  cell.read_time = alone ? time : std::min(cell.read_time, time);
  cell.read_lanes |= lane;
  cell.reader = static_cast<uint16_t>(thread);
  cell.read_code = code;
}

}  // namespace cnnext::emulator
