// Barriers in shared memory that count arrivals and bytes (mbarrier), and the copies that report to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "place.h"

namespace cnnext::emulator {

constexpr int kMaxBarriers = 32;  // of a block

/// Pieces of 16 bytes.
struct TensorCopy {
  struct Piece {
    void* shared;
    const void* global;
    size_t bytes;  // of `global`; then zeros
  };
  std::vector<Piece> pieces;
  Place place;
};

void mbarrier_init(uint64_t* barrier, int arrivals, const Place& place);

/// What this thread has initialised may be used by tensor copies.
void mbarrier_fence();

/// Arrives; the phase also waits for `expected_bytes` of tensor copies.
void mbarrier_arrive(const uint64_t* barrier, int expected_bytes, const Place& place);

/// Waits until a phase with this parity has ended.
void mbarrier_wait(const uint64_t* barrier, int parity, const Place& place);

/// The copy lands at once, or when a thread waits for the phase. Fails if the barrier does not expect its bytes: the
/// hardware would count below zero, or end the phase early.
void start_tensor_copy(const uint64_t* barrier, TensorCopy copy);

void begin_mbarriers();

/// The last thread of a block ends: fails if a copy was never waited for.
void finish_mbarriers();

}  // namespace cnnext::emulator
