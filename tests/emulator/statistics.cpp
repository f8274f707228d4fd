#include "statistics.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>

#include "scheduler.h"
#include "source_lines.h"

namespace cnnext::emulator {
namespace {

constexpr int kBanks = 32, kBankBytes = 4, kSectorBytes = 32;

struct Event {
  uint32_t warp;
  uint32_t repetition;  // how often this thread has executed the instruction in this block
  int lane;
  uintptr_t address;

  bool same_request(const Event& other) const { return warp == other.warp && repetition == other.repetition; }
};

/// One instruction, on one space and width.
struct Site {
  const void* return_address;
  Space space;
  Access access;
  size_t bytes;
  int64_t accesses = 0, requests = 0, cost = 0, ideal = 0;
  std::vector<Event> events;          // of this block
  std::vector<uint32_t> repetitions;  // of each thread in this block
};

struct Key {
  const void* return_address;
  int kind;
  bool operator==(const Key&) const = default;
};
struct Hash {
  size_t operator()(const Key& key) const { return reinterpret_cast<size_t>(key.return_address) * 31 + key.kind; }
};

bool collecting = false;
std::unordered_map<Key, Site, Hash> sites;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Sorts, and drops what is there twice.
void make_unique(std::vector<uintptr_t>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

/// The units of `unit` bytes that the events touch.
std::vector<uintptr_t> units(const Event* begin, const Event* end, size_t bytes, size_t unit) {
  std::vector<uintptr_t> result;
  for (const Event* e = begin; e != end; ++e) {
    for (uintptr_t u = e->address / unit; u <= (e->address + bytes - 1) / unit; ++u) result.push_back(u);
  }
  make_unique(result);
  return result;
}

void add_global(Site& site, const Event* begin, const Event* end) {
  const size_t smallest = std::min<size_t>(site.bytes & -site.bytes, kSectorBytes);
  site.cost += static_cast<int64_t>(units(begin, end, site.bytes, kSectorBytes).size());
  site.ideal += ceil_div(static_cast<int64_t>(units(begin, end, site.bytes, smallest).size() * smallest), kSectorBytes);
}

/// The lanes that one pass can serve together: half a warp for accesses of 8 bytes, a quarter for 16.
void add_shared(Site& site, const Event* begin, const Event* end) {
  const int lanes = site.bytes <= 4 ? 32 : site.bytes <= 8 ? 16 : 8;
  while (begin != end) {
    const int part = begin->lane / lanes;
    const Event* const part_end = std::find_if(begin, end, [&](const Event& e) { return e.lane / lanes != part; });
    const std::vector<uintptr_t> words = units(begin, part_end, site.bytes, kBankBytes);
    int of_bank[kBanks] = {};
    for (const uintptr_t word : words) ++of_bank[word % kBanks];
    site.cost += *std::max_element(of_bank, of_bank + kBanks);
    site.ideal += ceil_div(static_cast<int64_t>(words.size()), kBanks);
    begin = part_end;
  }
}

void add_requests(Site& site) {
  std::vector<Event>& events = site.events;
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
    return std::tie(a.warp, a.repetition, a.lane) < std::tie(b.warp, b.repetition, b.lane);
  });
  const Event* const end = events.data() + events.size();
  for (const Event* begin = events.data(); begin != end;) {
    const Event* const next = std::find_if(begin, end, [&](const Event& e) { return !e.same_request(*begin); });
    ++site.requests;
    if (site.space == Space::kShared) {
      add_shared(site, begin, next);
    } else {
      add_global(site, begin, next);
    }
    begin = next;
  }
  site.accesses += static_cast<int64_t>(events.size());
}

}  // namespace

void collect_statistics(bool on) { collecting = on; }
void clear_statistics() { sites.clear(); }

void count_access(Space space, Access access, uintptr_t address, size_t bytes, const void* return_address) {
  if (!collecting) return;
  const int kind = static_cast<int>(bytes) * 4 + static_cast<int>(space) * 2 + static_cast<int>(access);
  Site& site = sites.try_emplace({return_address, kind}, Site{return_address, space, access, bytes}).first->second;
  const int thread = thread_number();
  site.repetitions.resize(kMaxThreads);
  site.events.push_back({static_cast<uint32_t>(thread / kWarp), site.repetitions[thread]++, thread % kWarp, address});
}

void begin_block_statistics() {
  for (auto& [key, site] : sites) {
    site.events.clear();
    site.repetitions.assign(kMaxThreads, 0);
  }
}

void end_block_statistics() {
  for (auto& [key, site] : sites) add_requests(site);
}

std::vector<LineStatistics> statistics() {
  std::vector<const Site*> used;
  std::vector<const void*> addresses;
  for (const auto& [key, site] : sites) {
    used.push_back(&site);
    addresses.push_back(site.return_address);
  }
  const auto lines = source_lines(addresses);
  using LineKey = std::tuple<std::string, int, Space, Access, size_t>;
  std::map<LineKey, LineStatistics> result;
  for (size_t i = 0; i < used.size(); ++i) {
    const Site& site = *used[i];
    const SourceLine line = lines[i].empty() ? SourceLine{"unknown", 0} : lines[i][0];
    LineStatistics& sum = result[{line.file, line.line, site.space, site.access, site.bytes}];
    sum = {line.file,
           line.line,
           site.space,
           site.access,
           static_cast<int>(site.bytes),
           sum.accesses + site.accesses,
           sum.requests + site.requests,
           sum.cost + site.cost,
           sum.ideal + site.ideal};
  }
  std::vector<LineStatistics> list;
  for (auto& [key, line] : result) list.push_back(std::move(line));
  return list;
}

}  // namespace cnnext::emulator
