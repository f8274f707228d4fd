#include "warp.h"

#include <cstring>
#include <deque>
#include <vector>

#include "memory.h"

namespace cnnext::emulator {
namespace {

/// Meetings of each warp of the block, under way or free. A deque, since lanes hold on to them.
std::vector<std::deque<Meeting>> warps;

void check_lanes_exist(unsigned mask, const Place& place) {
  const int first = thread_number() / kWarp * kWarp;
  for (int i = 0; i < kWarp; ++i) {
    if (!(mask >> i & 1)) continue;
    if (first + i >= thread_count()) fail(place, "mask %08x names lane %d, which the block does not have", mask, i);
    if (has_exited(first + i)) fail(place, "mask %08x names lane %d, which has ended", mask, i);
  }
}

/// The meeting under way that this lane belongs to, or a new one.
Meeting& find_meeting(unsigned mask, const Place& place) {
  std::deque<Meeting>& meetings = warps[thread_number() / kWarp];
  Meeting* free = nullptr;
  for (Meeting& meeting : meetings) {
    if (meeting.unread == 0) free = &meeting;
    const bool gathers = meeting.unread != 0 && meeting.arrived != meeting.mask;
    if (!gathers) continue;
    if (meeting.mask == mask && meeting.place == place) return meeting;
    if (meeting.mask & mask) {
      fail(place, "mask %08x, while lanes %08x of this warp wait with mask %08x at %s", mask, meeting.arrived,
           meeting.mask, describe(meeting.place).c_str());
    }
  }
  check_lanes_exist(mask, place);
  if (free == nullptr) free = &meetings.emplace_back();
  free->mask = free->unread = mask;
  free->arrived = 0;
  free->place = place;
  return *free;
}

}  // namespace

void begin_warps() {
  warps.resize((thread_count() + kWarp - 1) / kWarp);
  for (auto& meetings : warps) {
    for (Meeting& meeting : meetings) meeting.unread = 0;
  }
}

Meeting& meet(unsigned mask, const void* payload, size_t bytes, const Place& place) {
  const int self = lane(), first = thread_number() - self;
  if (!(mask >> self & 1)) fail(place, "lane %d is not in its own mask %08x", self, mask);
  Meeting& meeting = find_meeting(mask, place);
  std::memcpy(meeting.payloads[self], payload, bytes);
  meeting.arrived |= 1u << self;
  if (meeting.arrived != mask) {
    wait(place, "for their warp");
    return meeting;
  }
  memory_joins_lanes(thread_number() / kWarp, mask);
  for (int i = 0; i < kWarp; ++i) {
    if (mask >> i & 1) wake(first + i);  // itself too: who comes last gets no head start
  }
  yield();
  return meeting;
}

void leave(Meeting& meeting) { meeting.unread &= ~(1u << lane()); }

void check_no_meeting_expects(int thread) {
  for (const Meeting& meeting : warps[thread / kWarp]) {
    if (meeting.unread != 0 && meeting.arrived != meeting.mask && (meeting.mask >> thread % kWarp & 1)) {
      fail(meeting.place, "mask %08x names lane %d, which has ended", meeting.mask, thread % kWarp);
    }
  }
}

}  // namespace cnnext::emulator
