#include "happens_before.h"

#include <algorithm>

namespace cnnext::emulator {

void HappensBefore::begin_block() {
  block_epoch_ = ++epoch_;
  barriers_.clear();
  reads_used_ = 0;
}

void HappensBefore::pass_barrier() {
  ++epoch_;
  for (size_t i = 0; i < barriers_.size(); ++i) {
    const size_t copies = kMaxThreads + i;
    uint32_t known = 0;
    for (int thread = 0; thread < kMaxThreads; ++thread) known = std::max(known, known_[thread][copies]);
    for (int thread = 0; thread < kMaxThreads; ++thread) known_[thread][copies] = known;
  }
}

void HappensBefore::merge(Clock& clock, const Clock& other) {
  for (size_t i = 0; i < clock.size(); ++i) clock[i] = std::max(clock[i], other[i]);
}

void HappensBefore::join_lanes(int warp, unsigned mask) {
  Clock* const lanes = known_.data() + warp * kWarp;
  ++collectives_;
  // Each lane now knows what any of them knew, and everything that they have done themselves.
  const int first = barriers_.empty() ? warp * kWarp : 0, end = barriers_.empty() ? first + kWarp : kMaxAgents;
  static uint32_t all[kMaxAgents];
  std::fill(all + first, all + end, 0);
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (int i = first; i < end; ++i) all[i] = std::max(all[i], lanes[lane][i]);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) all[warp * kWarp + lane] = collectives_;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) std::copy(all + first, all + end, lanes[lane].begin() + first);
  }
}

void HappensBefore::add_barrier() { barriers_.push_back({Clock(kMaxAgents), Clock(kMaxAgents)}); }

void HappensBefore::release(int barrier, int thread) {
  known_[thread][thread] = ++collectives_;
  merge(barriers_[barrier].phase, known_[thread]);
}

void HappensBefore::release_copies(int barrier) {
  const int copies = kMaxThreads + barrier;
  known_[copies][copies] = barriers_[barrier].phase[copies] = ++collectives_;
}

void HappensBefore::end_phase(int barrier) { merge(barriers_[barrier].ended, barriers_[barrier].phase); }

void HappensBefore::acquire(int barrier, int thread) { merge(known_[thread], barriers_[barrier].ended); }

bool HappensBefore::reads_are_ordered(const Cell& cell, int thread, int& other) const {
  other = -1;
  if (cell.read_by_others || (cell.read_epoch != 0 && cell.read_epoch < block_epoch_)) return false;
  other = cell.reader;
  if (cell.read_epoch != epoch_) return true;
  if (cell.reads >= 0) {
    for (const Read& read : reads_[cell.reads]) {
      other = read.thread;
      if (other != thread && !knows(thread, other, read.time)) return false;
    }
    return true;
  }
  if (cell.many_warps || cell.reader / kWarp != thread / kWarp) return false;
  uint32_t others = cell.read_lanes & ~(1u << thread % kWarp);
  for (; others != 0; others &= others - 1) {
    other = thread / kWarp * kWarp + __builtin_ctz(others);
    if (!knows(thread, other, cell.read_time)) return false;
  }
  return true;
}

void HappensBefore::record_write(Cell& cell, int agent, int32_t code) const {
  cell.write_epoch = epoch_;
  cell.write_time = time_of(agent);
  cell.write_code = code;
  cell.writer = static_cast<uint16_t>(agent);
}

void HappensBefore::record_read(Cell& cell, int thread, int32_t code) {
  const uint32_t lane = 1u << thread % kWarp, time = time_of(thread);
  if (cell.read_epoch != epoch_) {
    cell.read_by_others |= cell.read_epoch != 0 && cell.read_epoch < block_epoch_;
    cell.read_epoch = epoch_;
    cell.read_lanes = 0;
    cell.many_warps = false;
    cell.reads = -1;
    if (!barriers_.empty()) {
      if (reads_used_ == reads_.size()) reads_.emplace_back();
      cell.reads = static_cast<int32_t>(reads_used_++);
      reads_[cell.reads].clear();
    }
  } else if (cell.reads < 0 && cell.reader / kWarp != thread / kWarp) {
    cell.many_warps = true;
    return;
  } else if (cell.reads < 0 && time > cell.read_time) {
    // What this read is ordered after need not be remembered: what is ordered after this read is ordered after it too.
    for (uint32_t lanes = cell.read_lanes; lanes != 0; lanes &= lanes - 1) {
      const int other = __builtin_ctz(lanes);
      if (known_[thread][thread / kWarp * kWarp + other] > cell.read_time) cell.read_lanes &= ~(1u << other);
    }
  }
  cell.reader = static_cast<uint16_t>(thread);
  cell.read_code = code;
  if (cell.reads >= 0) {
    std::vector<Read>& reads = reads_[cell.reads];
    std::erase_if(reads,
                  [&](const Read& read) { return read.thread == thread || knows(thread, read.thread, read.time); });
    reads.push_back({thread, time});
    return;
  }
  const bool alone = (cell.read_lanes & ~lane) == 0;
  cell.read_time = alone ? time : std::min(cell.read_time, time);
  cell.read_lanes |= lane;
}

}  // namespace cnnext::emulator
