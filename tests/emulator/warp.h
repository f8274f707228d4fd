// Warp collectives: lanes meet, show each other a value, and go on.
#pragma once

#include <cstddef>

#include "place.h"
#include "scheduler.h"

namespace cnnext::emulator {

constexpr size_t kMaxPayload = 64;

/// The lanes named by `mask`, which have all called the same collective on the same line.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;  // lanes
  unsigned unread = 0;   // lanes that have not left yet; 0 if the meeting is free for use
  Place place;
  alignas(16) unsigned char payloads[kWarp][kMaxPayload];

  /// What `lane` brought.
  template <class T>
  [[gnu::no_sanitize("thread")]] T read(int lane) const {
    T value;
    __builtin_memcpy(static_cast<void*>(&value), payloads[lane], sizeof(T));
    return value;
  }
};

/// Lane of the thread that runs now.
inline int lane() { return thread_number() % kWarp; }

/// Brings `bytes` of `payload` to the meeting of `mask` and waits until all lanes are there. Call `leave` once the
/// payloads are read. Fails if the lanes of a mask cannot meet: one has ended, or waits elsewhere.
Meeting& meet(unsigned mask, const void* payload, size_t bytes, const Place& place);
void leave(Meeting& meeting);

void begin_warps();
void check_no_meeting_expects(int thread);

/// Meets, and returns what `read(meeting)` makes of all payloads.
template <class T, class Read>
[[gnu::no_sanitize("thread")]] auto exchange(unsigned mask, const T& payload, const Place& place, const Read& read) {
  static_assert(sizeof(T) <= kMaxPayload);
  Meeting& meeting = meet(mask, &payload, sizeof(T), place);
  const auto result = read(meeting);
  leave(meeting);
  return result;
}

}  // namespace cnnext::emulator
