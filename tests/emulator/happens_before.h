// Which accesses of different threads have an order that no schedule can change.
//
// Barriers order everything before them with everything after, in the whole block: an *epoch* is the time between two,
// counted through all blocks of the process. Inside an epoch a warp collective orders the lanes of its mask: a lane's
// *time* is the number of the last collective it took part in, and each lane knows up to which collective of each other
// lane everything has happened before (a vector clock).
//
// An mbarrier has such a clock too. An arrival makes a time, as a collective does, and adds what the thread knows; who
// waits learns what the barrier knew when the phase ended. The copies that a barrier counts are an agent like a thread,
// which knows nothing and which only those know about who have waited, or have met one who had at a barrier. In blocks
// without mbarriers no thread can know about another warp, so there each keeps to its own.
#pragma once

#include <cstdint>
#include <vector>

#include "mbarrier.h"
#include "scheduler.h"

namespace cnnext::emulator {

/// Threads, and the copies of each mbarrier.
constexpr int kMaxAgents = kMaxThreads + kMaxBarriers;

/// What is remembered of 2 bytes: who wrote and who read them last.
struct Cell {
  uint32_t write_epoch = 0;  // 0: never
  uint32_t write_time;
  int32_t write_code;      // of the instruction
  uint16_t writer;         // number of the agent
  bool in_flight = false;  // by a copy that has not been waited for

  // Of the reads that no later one is ordered after. All of one epoch, and of one warp unless many_warps.
  bool many_warps;
  uint32_t read_epoch = 0;
  uint32_t read_time;  // the earliest of them
  int32_t read_code;
  uint32_t read_lanes;
  uint16_t reader;     // one of them
  int32_t reads = -1;  // in a block with mbarriers: all of them, in HappensBefore::reads_; the four above do not count

  /// Read in this launch by blocks that ran before.
  bool read_by_others = false;
};

constexpr int kCellBytes = 2;

class HappensBefore {
 public:
  void begin_block();
  void pass_barrier();
  void join_lanes(int warp, unsigned mask);

  // As memory.h says.
  void add_barrier();
  void release(int barrier, int thread);
  void release_copies(int barrier);
  void end_phase(int barrier);
  void acquire(int barrier, int thread);

  /// The first epoch of the block that runs now.
  uint32_t block_epoch() const { return block_epoch_; }

  /// Whether a cell's last write is of the block that runs now.
  bool written_in_block(const Cell& cell) const { return cell.write_epoch >= block_epoch_; }

  /// Whether the cell's write, if there is one, happens before whatever `thread` does now.
  bool write_is_ordered(const Cell& cell, int thread) const {
    if (cell.write_epoch == 0) return true;
    if (cell.write_epoch < block_epoch_) return false;  // of another block, which runs beside this one on a GPU
    if (cell.writer >= kMaxThreads) return knows(thread, cell.writer, cell.write_time);
    return cell.write_epoch < epoch_ || cell.writer == thread || knows(thread, cell.writer, cell.write_time);
  }

  /// The same of all its reads. If not, `other` is the number of a thread that reads, or -1: one of another block.
  bool reads_are_ordered(const Cell& cell, int thread, int& other) const;

  void record_write(Cell& cell, int agent, int32_t code) const;
  void record_read(Cell& cell, int thread, int32_t code);

 private:
  /// A clock: up to which time of each agent everything has happened before.
  using Clock = std::vector<uint32_t>;

  struct Read {
    int thread;
    uint32_t time;
  };

  struct Barrier {
    Clock phase, ended;  // what this phase knows, and what those before it knew
  };

  /// Whether what `other` did at `time` happens before what `thread` does now.
  bool knows(int thread, int other, uint32_t time) const { return known_[thread][other] > time; }
  uint32_t time_of(int agent) const { return known_[agent][agent]; }

  static void merge(Clock& clock, const Clock& other);

  uint32_t epoch_ = 1, block_epoch_ = 1;
  std::vector<Clock> known_ = std::vector<Clock>(kMaxAgents, Clock(kMaxAgents));
  uint32_t collectives_ = 0;  // of all warps so far, and what else makes a time
  std::vector<Barrier> barriers_;
  std::vector<std::vector<Read>> reads_;  // the first reads_used_; the others keep their memory for later
  size_t reads_used_ = 0;
};

}  // namespace cnnext::emulator
