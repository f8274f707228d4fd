// Keeps large blocks of freed CPU outputs for the next outputs.
//
// A fresh block of memory costs a page fault for each 4 KiB that is written: for a depthwise convolution several times
// what the arithmetic does. Neither torch's CPU allocator nor, for large blocks, the C library keeps what is freed. The
// pool does, up to a limit, and gives a block to a request that fills most of it.
//
// NOTE: all of it is in the header because problem.cpp, which allocates, is a part of both shared objects. That of the
// CUDA kernels never has a CPU output, so its pool is never made.
#pragma once

#include <pthread.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace cnnext::bindings {

/// A pool of blocks, safe to use from any thread and in a forked child.
class OutputPool {
 public:
  /// Smaller outputs are left to torch's allocator, whose call costs less.
  static constexpr size_t kMinBytes = size_t{1} << 20;
  static constexpr int64_t kDefaultLimitMib = 256;

  /// The pool of the process. Never destroyed: tensors may outlive every static object.
  static OutputPool& instance() {
    static OutputPool* const pool = [] {
      auto* made = new OutputPool(limit_from_environment());
      // A thread of the parent may hold the lock at the fork, and would never give it back in the child.
      pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                     [] { instance().mutex_.unlock(); });
      return made;
    }();
    return *pool;
  }

  /// A block of at least `bytes`, aligned to kHeader, with whatever it held before; null if the pool is off or the
  /// system has no memory.
  void* allocate(size_t bytes) {
    if (limit_ == 0) return nullptr;
    if (void* data = take(bytes)) return data;
    const size_t size = round_up(bytes);
    void* start = mmap(nullptr, size + kHeader, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return nullptr;
    *static_cast<size_t*>(start) = size;
    return static_cast<char*>(start) + kHeader;
  }

  /// Takes back what `allocate` gave. The blocks freed longest ago make room for it.
  void release(void* data) noexcept {
    const size_t size = size_of(data);
    if (size > limit_) return unmap(data);
    while (true) {
      void* oldest = nullptr;
      {
        const std::lock_guard lock(mutex_);
        if (free_bytes_ + size <= limit_) {
          free_.push_back({data, size});
          free_bytes_ += size;
          return;
        }
        oldest = free_.front().data;
        free_bytes_ -= free_.front().size;
        free_.erase(free_.begin());
      }
      unmap(oldest);
    }
  }

  /// Gives every free block back to the system; returns how many bytes that were.
  size_t empty() {
    std::vector<Block> blocks;
    blocks.reserve(free_.capacity());
    size_t bytes = 0;
    {
      const std::lock_guard lock(mutex_);
      blocks.swap(free_);
      std::swap(bytes, free_bytes_);
    }
    for (const Block& block : blocks) unmap(block.data);
    return bytes;
  }

 private:
  struct Block {
    void* data;
    size_t size;
  };

  static constexpr size_t kPage = 4096;
  /// In front of a block is its size, in half a page: inputs from torch's allocator begin close behind a page's first
  /// byte. A load whose address has the low 12 bits of a recent store waits for it, and a kernel that walks an input
  /// and an output in step would meet that at each vector if the two began a cache line apart.
  static constexpr size_t kHeader = kPage / 2;

  explicit OutputPool(size_t limit) : limit_(limit) {
    free_.reserve(limit / kMinBytes + 1);  // so that `release` never allocates
  }

  /// CNNEXT_CPU_POOL_MIB in bytes. What is no number counts as not set.
  static size_t limit_from_environment() {
    const char* text = std::getenv("CNNEXT_CPU_POOL_MIB");
    int64_t mib = kDefaultLimitMib;
    if (text != nullptr) {
      char* end = nullptr;
      errno = 0;
      const long long value = std::strtoll(text, &end, 10);
      constexpr long long kMost = int64_t{1} << 24;  // 16 TiB
      if (end != text && *end == '\0' && errno == 0 && value >= 0) mib = value < kMost ? value : kMost;
    }
    return static_cast<size_t>(mib) << 20;
  }

  static size_t round_up(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }
  static void* start_of(void* data) { return static_cast<char*>(data) - kHeader; }
  static size_t size_of(void* data) { return *static_cast<size_t*>(start_of(data)); }
  static void unmap(void* data) { munmap(start_of(data), size_of(data) + kHeader); }

  /// The smallest free block that holds `bytes` and of which they fill three quarters; the last freed among equals,
  /// since it may still be in the cache. Null if there is none.
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block) {
      const bool fits = block->size >= bytes && block->size - block->size / 4 <= round_up(bytes);
      if (fits && (best == free_.end() || block->size <= best->size)) best = block;
    }
    if (best == free_.end()) return nullptr;
    void* data = best->data;
    free_bytes_ -= best->size;
    free_.erase(best);
    return data;
  }

  const size_t limit_;
  std::mutex mutex_;
  std::vector<Block> free_;  // freed longest ago first
  size_t free_bytes_ = 0;
};

}  // namespace cnnext::bindings
