// Threads for the CPU kernels, lent by the caller (torch's intra-op pool), so that no kernel depends on torch.
#pragma once

#include <cstdint>

namespace cnnext::cpu {

/// Splits [begin, end) into contiguous chunks of at least `grain` and runs them on a pool of threads.
///
/// NOTE: which thread runs which chunk, and how many chunks there are, depends on the pool. A kernel stays
/// deterministic by giving each output to exactly one index and by reducing in an order that follows from the problem
/// alone.
class Parallel {
 public:
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  using ForFunction = void (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

  Parallel(ForFunction parallel_for, int num_threads) : parallel_for_(parallel_for), num_threads_(num_threads) {}

  int num_threads() const { return num_threads_; }

  /// Calls f(chunk_begin, chunk_end) on the pool until [begin, end) is done. A range of one grain runs inline.
  template <class F>
  void operator()(int64_t begin, int64_t end, int64_t grain, const F& f) const {
    if (end <= begin) return;
    if (num_threads_ == 1 || end - begin <= grain) {
      f(begin, end);
      return;
    }
    parallel_for_(
        begin, end, grain,
        [](int64_t chunk_begin, int64_t chunk_end, void* context) {
          (*static_cast<const F*>(context))(chunk_begin, chunk_end);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  ForFunction parallel_for_;
  int num_threads_;
};

}  // namespace cnnext::cpu
