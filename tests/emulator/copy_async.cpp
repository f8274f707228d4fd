#include "copy_async.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"
#include "scheduler.h"

namespace cnnext::emulator {
namespace {

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  size_t bytes;
  int group;
  bool landed;
  Place place;
};

/// Of one thread.
struct Queue {
  std::vector<Copy> copies;  // not waited for, oldest first
  int group = 0;             // that a copy started now belongs to
};

Queue queues[kMaxThreads];

Queue& own_queue() { return queues[thread_number()]; }

void land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  if (copy.global != nullptr) {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
}

}  // namespace

void start_copy(void* shared, const void* global, size_t bytes, bool valid, const Place& place) {
  if (valid) check_access(global, bytes, Access::kRead, place);
  copy_starts(shared, bytes, place);
  Copy copy{shared, valid ? global : nullptr, bytes, own_queue().group, false, place};
  if (random_bits() % 4 == 0) land(copy);
  own_queue().copies.push_back(copy);
}

void commit_copies() { ++own_queue().group; }

void wait_copies(int pending) {
  Queue& queue = own_queue();
  size_t done = 0;
  for (; done < queue.copies.size() && queue.copies[done].group < queue.group - pending; ++done) {
    land(queue.copies[done]);
    copy_lands(queue.copies[done].shared, queue.copies[done].bytes);
  }
  queue.copies.erase(queue.copies.begin(), queue.copies.begin() + done);
}

void finish_copies() {
  Queue& queue = own_queue();
  if (queue.copies.empty()) return;
  const Place place = queue.copies.front().place;
  fail(place, "this cp.async was never waited for, and the thread has ended");
}

void abandon_copies() {
  for (Queue& queue : queues) queue = {};
}

}  // namespace cnnext::emulator
