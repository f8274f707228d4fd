// What the depthwise kernels of every direction and layout share: how work is split, scratch memory.
#pragma once

#include "epilogue.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// The number of consecutive indices that are worth a thread, when each costs `work` multiply-adds. Waking the pool
/// costs about 5 us, so a problem of less than two such chunks runs where it is called.
CNNEXT_INLINE int64_t depthwise_grain(int64_t work) {
  constexpr int64_t kMinWorkPerThread = 64 * 1024;
  return ceil_div(kMinWorkPerThread, max(work, 1));
}

/// An uninitialised array: on the stack when it has at most kInline elements, which is the common case, else on the
/// heap.
template <class A, int64_t kInline>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(size <= kInline ? inline_
                              : static_cast<A*>(::operator new(static_cast<size_t>(size) * sizeof(A), kAlignment))) {}
  ~Scratch() {
    if (data_ != inline_) ::operator delete(data_, kAlignment);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  A* data() { return data_; }
  const A* data() const { return data_; }
  A& operator[](int64_t i) { return data_[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  union {  // without initialising the elements
    alignas(64) A inline_[kInline];
  };
  A* data_;
};

/// The largest filter size with kernels of its own: 3, 5 and 7 for float32, where 7x7 is in use; other filters, and
/// float64, take the kernels for any filter. It keeps the compile time of an instruction set below a minute.
template <class T>
constexpr int kMaxFastFilter = std::is_same_v<T, double>  ? 0
                               : std::is_same_v<T, float> ? 7
                                                          : 5;

/// Whether there is a kernel for filters with `size` rows (columns).
template <class T>
CNNEXT_INLINE bool is_fast_filter(int64_t size) {
  return (size == 3 || size == 5 || size == 7) && size <= kMaxFastFilter<T>;
}

/// Calls f with std::integral_constant<int, value>, where value is one of the list.
template <int first, int... rest, class F>
CNNEXT_INLINE void dispatch_int(int64_t value, const F& f) {
  if constexpr (sizeof...(rest) > 0) {
    if (value != first) return dispatch_int<rest...>(value, f);
  }
  f(std::integral_constant<int, first>{});
}

/// dispatch_int for a size that is_fast_filter accepts.
template <class T, class F>
CNNEXT_INLINE void dispatch_fast_filter(int64_t size, const F& f) {
  if constexpr (kMaxFastFilter<T> == 7) {
    dispatch_int<3, 5, 7>(size, f);
  } else if constexpr (kMaxFastFilter<T> == 5) {
    dispatch_int<3, 5>(size, f);
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
