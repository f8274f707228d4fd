#include "warpgroup.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "memory.h"
#include "scheduler.h"
#include "shared_memory.h"
#include "warp.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace cnnext::emulator {
namespace {

constexpr int kDepth = 16, kRows = 16;  // of a product; of the 64 rows, those of a warp
constexpr int kMaxColumns = 256;
constexpr int kWarpsOfGroup = 4;
constexpr unsigned kAll = 0xffffffffu;
constexpr uint32_t kUnknown = 0x7ffadeadu;  // a NaN, which no arithmetic gives

/// One warp's part of a product.
struct Part {
  Product product;
  Place place;
  bool read = false;      // its factors
  bool finished = false;  // and nobody reads them any more
  float result[kRows][kMaxColumns];
};

/// Sums of a thread, while products add to them.
struct Sums {
  float* registers;
  std::vector<float> values;
  int products = 0;
};

struct Pending {
  std::shared_ptr<Part> part;
  Sums* sums;
  int group;
};

/// Of a thread.
struct Queue {
  std::vector<Pending> pending;  // oldest first
  std::deque<Sums> sums;
  size_t started = 0;
  int group = 0;  // that a product started now belongs to
  bool fenced = false;
};

Queue queues[kMaxThreads];
std::vector<std::vector<std::shared_ptr<Part>>> parts_of_warp;  // all that were started in this block
int threads_with_products = 0;

Queue& own_queue() { return queues[thread_number()]; }
int warp_number() { return thread_number() / kWarp; }

/// A factor in shared memory, as its descriptor says.
class Factor {
 public:
  Factor(uint64_t descriptor, const Place& place) {
    const auto field = [&](int first) { return static_cast<unsigned>(descriptor >> first & 0x3fff) << 4; };
    start_ = field(0), leading_ = field(16), stride_ = field(32);
    if (descriptor >> 62 != 1) fail(place, "matrix descriptor: only the 128-byte swizzle is modelled");
    if ((descriptor >> 49 & 7) != 0 || (start_ >> 7 & 7) != 0) {
      fail(place, "matrix descriptor: shared memory + %u is not in the first line of a swizzle pattern of 1024 bytes",
           start_);
    }
  }

  /// Where the 16 bytes are that hold element `inner` of line `line`. Lines go in eights, `stride` apart; the next 64
  /// elements of the inner dimension are `leading` further on.
  unsigned piece(int line, int inner) const {
    const unsigned at = start_ + line / 8 * stride_ + line % 8 * 128 + inner / 64 * leading_ + inner % 64 * 2;
    return (at ^ (at >> 7 & 7) << 4) & ~15u;
  }

 private:
  unsigned start_, leading_, stride_;
};

float element(const unsigned char* piece, int index, bool bfloat16) {
  uint16_t bits;
  std::memcpy(&bits, piece + 2 * index, sizeof(bits));
  if (bfloat16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}

/// Calls f(line, first inner element, address) for each 16 bytes of this warp's rows of A, and of B.
template <class F>
void visit_a(const Part& part, F f) {
  const Factor factor(part.product.a, part.place);
  const int first = warp_number() % kWarpsOfGroup * kRows;
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kDepth; k += 8) f(row, k, factor.piece(first + row, k));
  }
}
template <class F>
void visit_b(const Part& part, F f) {
  const Factor factor(part.product.b, part.place);
  const bool along = part.product.columns_along_line;
  const int lines = along ? kDepth : part.product.columns, inner = along ? part.product.columns : kDepth;
  for (int line = 0; line < lines; ++line) {
    for (int i = 0; i < inner; i += 8) f(line, i, factor.piece(line, i));
  }
}

void check_factors(const Part& part) {
  const auto check = [&](int, int, unsigned address) {
    check_uncounted(shared_pointer(address, 16, part.place), 16, Access::kRead, part.place);
  };
  visit_a(part, check);
  visit_b(part, check);
}

void read_factors(Part& part) {
  static float a[kRows][kDepth], b[kDepth][kMaxColumns];
  const bool bfloat16 = part.product.bfloat16;
  visit_a(part, [&](int row, int k, unsigned address) {
    const unsigned char* piece = shared_pointer(address, 16, part.place);
    for (int i = 0; i < 8; ++i) a[row][k + i] = element(piece, i, bfloat16);
  });
  visit_b(part, [&](int line, int inner, unsigned address) {
    const unsigned char* piece = shared_pointer(address, 16, part.place);
    for (int i = 0; i < 8; ++i) {
      (part.product.columns_along_line ? b[line][inner + i] : b[inner + i][line]) = element(piece, i, bfloat16);
    }
  });
  for (int row = 0; row < kRows; ++row) {
    std::fill_n(part.result[row], part.product.columns, 0.0f);
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < part.product.columns; ++n) part.result[row][n] += a[row][k] * b[k][n];
    }
  }
  part.read = true;
}

/// Sums that products add to belong to them.
void take(Sums& sums, int count) {
  sums.values.assign(sums.registers, sums.registers + count);
  for (int i = 0; i < count; ++i) std::memcpy(sums.registers + i, &kUnknown, sizeof(float));
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(sums.registers, count * sizeof(float));
#endif
}

void unpoison(const Sums& sums) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(sums.registers, sums.values.size() * sizeof(float));
#else
  (void)sums;
#endif
}

void give_back(const Sums& sums, const Place& place) {
  unpoison(sums);
  for (size_t i = 0; i < sums.values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, sums.registers + i, sizeof(bits));
    if (bits != kUnknown) fail(place, "sum %zu of this product was written before it was waited for", i);
  }
  std::copy(sums.values.begin(), sums.values.end(), sums.registers);
}

Sums& sums_at(float* registers, int count) {
  Queue& queue = own_queue();
  for (Sums& sums : queue.sums) {
    if (sums.registers == registers) return sums;
  }
  Sums& sums = queue.sums.emplace_back();
  sums.registers = registers;
  take(sums, count);
  return sums;
}

/// Of the warp's products the one that this thread starts next; the first lane that comes makes it.
std::shared_ptr<Part> next_part(const Product& product, const Place& place) {
  Queue& queue = own_queue();
  auto& parts = parts_of_warp[warp_number()];
  const size_t index = queue.started++;
  if (index < parts.size()) return parts[index];
  const int first_warp = warp_number() / kWarpsOfGroup * kWarpsOfGroup;
  for (int warp = first_warp; warp < first_warp + kWarpsOfGroup; ++warp) {
    if (index < parts_of_warp[warp].size() && !(parts_of_warp[warp][index]->product == product)) {
      fail(place, "another warp of this warpgroup has started another product, at %s",
           describe(parts_of_warp[warp][index]->place).c_str());
    }
  }
  auto part = std::make_shared<Part>();
  part->product = product, part->place = place;
  parts.push_back(part);
  check_factors(*part);
  if (random_bits() % 2 == 0) read_factors(*part);
  return part;
}

void add_result(const Pending& pending) {
  const Part& part = *pending.part;
  std::vector<float>& values = pending.sums->values;
  for (int i = 0; i < part.product.columns / 2; ++i) {
    const int row = i / 2 % 2 * 8 + lane() / 4, column = i / 4 * 8 + lane() % 4 * 2 + i % 2;
    values[i] += part.result[row][column];
  }
}

void finish(const Pending& pending) {
  Part& part = *pending.part;
  if (!part.read) read_factors(part);
  // Once more: until now nobody may have written there.
  if (!part.finished) check_factors(part);
  part.finished = true;
  add_result(pending);
  if (--pending.sums->products > 0) return;
  give_back(*pending.sums, part.place);
  std::deque<Sums>& all = own_queue().sums;
  all.erase(std::find_if(all.begin(), all.end(), [&](const Sums& sums) { return &sums == pending.sums; }));
}

}  // namespace

void wgmma_fence(const Place& place) {
  leave(meet(kAll, "", 1, place));
  own_queue().fenced = true;
}

void wgmma_multiply(const Product& product, float* sums, const Place& place) {
  if (thread_count() < (warp_number() / kWarpsOfGroup + 1) * kWarpsOfGroup * kWarp) {
    fail(place, "a product of a warpgroup that has fewer than 128 threads");
  }
  Queue& queue = own_queue();
  if (!queue.fenced) fail(place, "a product with no wgmma_fence before it, or none since the last wait");
  const bool same = exchange(kAll, product, place, [&](const Meeting& meeting) {
    bool all = true;
    for (int i = 0; i < kWarp; ++i) all = all && meeting.read<Product>(i) == product;
    return all;
  });
  if (!same) fail(place, "the lanes of a warp have started different products");
  std::shared_ptr<Part> part = next_part(product, place);
  Sums& mine = sums_at(sums, product.columns / 2);
  ++mine.products;
  if (queue.pending.empty()) ++threads_with_products;
  queue.pending.push_back({std::move(part), &mine, queue.group});
}

void wgmma_commit(const Place& place) {
  leave(meet(kAll, "", 1, place));
  ++own_queue().group;
}

void wgmma_wait(int pending, const Place& place) {
  leave(meet(kAll, "", 1, place));
  Queue& queue = own_queue();
  queue.fenced = false;
  size_t done = 0;
  for (; done < queue.pending.size() && queue.pending[done].group < queue.group - pending; ++done) {
    finish(queue.pending[done]);
  }
  if (done > 0 && done == queue.pending.size()) --threads_with_products;
  queue.pending.erase(queue.pending.begin(), queue.pending.begin() + done);
  // What a lane does next comes after the reads, which another may have made for all.
  leave(meet(kAll, "", 1, place));
}

void begin_warpgroups() {
  parts_of_warp.assign((thread_count() + kWarp - 1) / kWarp + kWarpsOfGroup, {});
  for (int i = 0; i < thread_count(); ++i) queues[i] = {};
  threads_with_products = 0;
}

/// Its frame may lie on such sums.
[[gnu::no_sanitize("address")]] bool products_are_pending() { return threads_with_products > 0; }

void finish_products() {
  const Queue& queue = own_queue();
  if (queue.pending.empty()) return;
  fail(queue.pending.front().part->place, "this product was never waited for, and the thread has ended");
}

void abandon_products() {
  for (Queue& queue : queues) {
    for (const Sums& sums : queue.sums) unpoison(sums);
    queue = {};
  }
}

const Place* product_with_sums(uintptr_t address, size_t bytes) {
  if (threads_with_products == 0) return nullptr;
  for (const Pending& pending : own_queue().pending) {
    const auto first = reinterpret_cast<uintptr_t>(pending.sums->registers);
    const uintptr_t end = first + pending.sums->values.size() * sizeof(float);
    if (address < end && address + bytes > first) return &pending.part->place;
  }
  return nullptr;
}

}  // namespace cnnext::emulator
