#include "mbarrier.h"

#include <cstring>
#include <deque>
#include <optional>

#include "memory.h"
#include "scheduler.h"
#include "shared_memory.h"

namespace cnnext::emulator {
namespace {

struct Barrier {
  const uint64_t* address;
  int index;     // of the block
  int arrivals;  // of a phase
  int missing;   // arrivals of this phase that have not come yet
  int initialiser;
  bool fenced = false;
  int64_t expected_bytes = 0;   // that have not landed yet
  int64_t announced_bytes = 0;  // expected, and no copy with them has started
  unsigned phase = 0;
  std::vector<TensorCopy> under_way;
  std::optional<Place> unwaited;  // a copy, until a thread has waited for its phase
  unsigned unwaited_phase = 0;
  std::vector<int> waiting;  // threads
};

/// A deque, since threads hold on to them while they wait.
std::deque<Barrier> barriers;

Barrier& find(const uint64_t* address, const Place& place) {
  for (Barrier& barrier : barriers) {
    if (barrier.address == address) {
      // As a read of the barrier's bytes: races with its initialisation, and with other uses of the memory.
      check_uncounted(address, sizeof(*address), Access::kRead, place);
      return barrier;
    }
  }
  fail(place, "no mbarrier has been initialised at %p", static_cast<const void*>(address));
}

void wake_all(Barrier& barrier) {
  for (const int thread : barrier.waiting) wake(thread);
  barrier.waiting.clear();
}

void end_phase_if_complete(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.expected_bytes > 0) return;
  ++barrier.phase;
  barrier.missing = barrier.arrivals;
  memory_ends_phase(barrier.index);
  wake_all(barrier);
}

void land(Barrier& barrier, const TensorCopy& copy) {
  for (const TensorCopy::Piece& piece : copy.pieces) {
    std::memset(piece.shared, 0, kTensorPieceBytes);
    if (piece.bytes > 0) std::memcpy(piece.shared, piece.global, piece.bytes);
    tensor_copy_lands(piece.shared, barrier.index, copy.place);
  }
  memory_releases_copies(barrier.index);
  barrier.expected_bytes -= static_cast<int64_t>(copy.pieces.size() * kTensorPieceBytes);
}

void land_all(Barrier& barrier) {
  const std::vector<TensorCopy> copies = std::move(barrier.under_way);
  barrier.under_way.clear();
  for (const TensorCopy& copy : copies) land(barrier, copy);
  end_phase_if_complete(barrier);
}

}  // namespace

void mbarrier_init(uint64_t* address, int arrivals, const Place& place) {
  check_access(address, sizeof(*address), Access::kWrite, place);
  if (!in_shared_memory(address))
    fail(place, "mbarrier at %p, which is not shared memory", static_cast<void*>(address));
  if (barriers.size() == kMaxBarriers) fail(place, "more than %d mbarriers", kMaxBarriers);
  for (const Barrier& barrier : barriers) {
    if (barrier.address == address) fail(place, "a second mbarrier at %p", static_cast<void*>(address));
  }
  *address = 0;
  Barrier barrier;
  barrier.address = address;
  barrier.index = static_cast<int>(barriers.size());
  barrier.arrivals = barrier.missing = arrivals;
  barrier.initialiser = thread_number();
  barriers.push_back(std::move(barrier));
  memory_gets_barrier();
}

void mbarrier_fence() {
  for (Barrier& barrier : barriers) barrier.fenced |= barrier.initialiser == thread_number();
}

void mbarrier_arrive(const uint64_t* address, int expected_bytes, const Place& place) {
  Barrier& barrier = find(address, place);
  if (barrier.missing == 0)
    fail(place, "arrival number %d at an mbarrier with %d", barrier.arrivals + 1, barrier.arrivals);
  memory_releases(barrier.index);
  barrier.expected_bytes += expected_bytes;
  barrier.announced_bytes += expected_bytes;
  --barrier.missing;
  end_phase_if_complete(barrier);
}

void mbarrier_wait(const uint64_t* address, int parity, const Place& place) {
  Barrier& barrier = find(address, place);
  while ((barrier.phase & 1) == static_cast<unsigned>(parity)) {
    land_all(barrier);
    if ((barrier.phase & 1) != static_cast<unsigned>(parity)) break;
    barrier.waiting.push_back(thread_number());
    wait(place, "at an mbarrier");
  }
  if (barrier.unwaited && barrier.phase > barrier.unwaited_phase) barrier.unwaited.reset();
  memory_acquires(barrier.index);
}

void start_tensor_copy(const uint64_t* address, TensorCopy copy) {
  const Place place = copy.place;
  Barrier& barrier = find(address, place);
  if (!barrier.fenced) fail(place, "tensor copy to an mbarrier with no fence_async_proxy after its initialisation");
  const auto bytes = static_cast<int64_t>(copy.pieces.size() * kTensorPieceBytes);
  if (bytes > barrier.announced_bytes) {
    fail(place, "tensor copy of %lld bytes, and its mbarrier expects %lld", static_cast<long long>(bytes),
         static_cast<long long>(barrier.announced_bytes));
  }
  barrier.announced_bytes -= bytes;
  for (const TensorCopy::Piece& piece : copy.pieces) tensor_copy_starts(piece.shared, place);
  barrier.unwaited = place;
  barrier.unwaited_phase = barrier.phase;
  if (random_bits() % 4 == 0) {
    land(barrier, copy);
    end_phase_if_complete(barrier);
  } else {
    barrier.under_way.push_back(std::move(copy));
    wake_all(barrier);  // who waits brings it home
  }
}

void begin_mbarriers() { barriers.clear(); }

void finish_mbarriers() {
  for (const Barrier& barrier : barriers) {
    if (barrier.unwaited) fail(*barrier.unwaited, "this tensor copy was never waited for, and the block has ended");
  }
}

}  // namespace cnnext::emulator
