// Scratch memory and element copies of the pointwise and grouped kernels.
#pragma once

#include "simd.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Uses of scratch that are alive at the same time on one thread.
enum class Slot { kFilter, kBias, kPanel, kOutput, kTable, kTargets, kTileTargets, kBand, kBand2, kZeros, kTaps, kPartial, kCount };

/// A buffer that only grows, so that repeated calls allocate nothing.
class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ScratchBuffer(const ScratchBuffer&) = delete;
  ScratchBuffer& operator=(const ScratchBuffer&) = delete;
  ~ScratchBuffer() { ::free(memory_); }

  /// At least `bytes` bytes, 64-byte aligned, with unspecified contents. Null when there is no memory.
  void* get(size_t bytes) {
    if (bytes > size_) {
      ::free(memory_);
      memory_ = nullptr;
      size_ = 0;
      if (::posix_memalign(&memory_, 64, bytes) != 0) return nullptr;
      size_ = bytes;
    }
    return memory_;
  }
  size_t size() const { return size_; }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

inline ScratchBuffer& scratch_buffer(Slot slot) {
  thread_local ScratchBuffer buffers[static_cast<int>(Slot::kCount)];
  return buffers[static_cast<int>(slot)];
}

/// Room for `count` values of type X in this thread's buffer of `slot`.
/// NOTE: one vector of slack, so that a whole-vector load at the last element stays inside.
template <class X>
inline X* scratch(Slot slot, int64_t count) {
  void* memory = scratch_buffer(slot).get(static_cast<size_t>(count) * sizeof(X) + 64);
  if (memory == nullptr) ::abort();
  return static_cast<X*>(memory);
}

/// `count` zeros. Nothing else is ever written to their slot.
template <class A>
inline const A* zeros(int64_t count) {
  ScratchBuffer& buffer = scratch_buffer(Slot::kZeros);
  const size_t before = buffer.size();
  A* result = scratch<A>(Slot::kZeros, count);
  if (buffer.size() != before) __builtin_memset(result, 0, buffer.size());
  return result;
}

template <class A>
CNNEXT_INLINE void fill_zero(A* to, int64_t count) {
  __builtin_memset(to, 0, static_cast<size_t>(count) * sizeof(A));
}

/// Lanes of a (0 .. kWidth - 1) and b (kWidth .. 2 kWidth - 1), chosen by constant indices, one for each lane.
template <class A, size_t... kIndex>
CNNEXT_INLINE Vec<A> shuffle(Vec<A> a, Vec<A> b, std::index_sequence<kIndex...>) {
  typedef A Raw __attribute__((vector_size(sizeof(Vec<A>))));
  Raw x, y;
  __builtin_memcpy(&x, &a, sizeof(x));
  __builtin_memcpy(&y, &b, sizeof(y));
#if defined(__clang__) || __GNUC__ >= 12
  const Raw z = __builtin_shufflevector(x, y, static_cast<int>(kIndex)...);
#else
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Index __attribute__((vector_size(sizeof(Vec<A>))));
  const Raw z = __builtin_shuffle(x, y, Index{static_cast<int>(kIndex)...});
#endif
  Vec<A> result;
  __builtin_memcpy(&result, &z, sizeof(z));
  return result;
}

template <class A>
using Lanes = std::make_index_sequence<Vec<A>::kWidth>;

template <size_t kFirst, size_t kWidth, size_t... kLane>
constexpr auto zip_indices(std::index_sequence<kLane...>) {
  return std::index_sequence<(kFirst + kLane / 2 + kLane % 2 * kWidth)...>{};
}

/// Interleaves the lower (kHigh = 0) or upper halves of a and b: a0 b0 a1 b1 ...
template <int kHigh, class A>
CNNEXT_INLINE Vec<A> zip(Vec<A> a, Vec<A> b) {
  constexpr size_t kWidth = Vec<A>::kWidth;
  return shuffle(a, b, zip_indices<kHigh * kWidth / 2, kWidth>(Lanes<A>{}));
}

template <size_t... kLane>
constexpr auto even_indices(std::index_sequence<kLane...>) {
  return std::index_sequence<(2 * kLane)...>{};
}

/// to[i] = from[i * step], converted to the accumulator type (or from it) where the types differ.
template <class From, class To>
CNNEXT_INLINE void copy_run(const From* from, int64_t step, To* to, int64_t count) {
  using A = std::conditional_t<std::is_same_v<From, double>, double, float>;
  constexpr int64_t kWidth = Vec<A>::kWidth;
  if (step == 1) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) Vec<A>::load(from + i).store(to + i);
    const int tail = static_cast<int>(count - i);
    if (tail > 0) Vec<A>::load(from + i, tail).store(to + i, tail);
  } else {
    int64_t i = 0;
    if (step == 2) {
      // The last pair of vectors is left out: its odd lanes may lie beyond the end of `from`.
      for (; i + kWidth < count; i += kWidth) {
        const Vec<A> low = Vec<A>::load(from + 2 * i), high = Vec<A>::load(from + 2 * i + kWidth);
        shuffle(low, high, even_indices(Lanes<A>{})).store(to + i);
      }
    }
    for (; i < count; ++i) store_scalar<A>(to + i, load_scalar<A>(from + i * step));
  }
}

template <class From, class To>
CNNEXT_INLINE void scatter_run(const From* from, To* to, int64_t step, int64_t count) {
  using A = std::conditional_t<std::is_same_v<From, double>, double, float>;
  if (step == 1) {
    copy_run(from, 1, to, count);
  } else {
    for (int64_t i = 0; i < count; ++i) store_scalar<A>(to + i * step, load_scalar<A>(from + i));
  }
}

/// The bias as accumulators: itself if it has their type, else a converted copy; null stays null.
template <class A, class T>
inline const A* bias_as_accumulators(const T* bias, int64_t count) {
  if constexpr (std::is_same_v<A, T>) {
    return bias;
  } else {
    if (bias == nullptr) return nullptr;
    A* converted = scratch<A>(Slot::kBias, count);
    copy_run(bias, 1, converted, count);
    return converted;
  }
}

/// Transposes kWidth vectors in registers: log2(kWidth) perfect shuffles of the rows.
template <class A>
CNNEXT_INLINE void transpose_square(Vec<A> (&rows)[Vec<A>::kWidth]) {
  constexpr int kWidth = Vec<A>::kWidth;
#pragma GCC unroll 4
  for (int round = 1; round < kWidth; round *= 2) {
    Vec<A> next[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = zip<0, A>(rows[i], rows[i + kWidth / 2]);
      next[2 * i + 1] = zip<1, A>(rows[i], rows[i + kWidth / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}

/// to[j * to_row + i] = from[i * from_row + j] for i < rows, j < columns, converted where the types differ.
/// Only those elements are read and written.
template <class From, class To>
inline void transpose(const From* from, int64_t from_row, To* to, int64_t to_row, int64_t rows, int64_t columns) {
  using A = std::conditional_t<std::is_same_v<From, double>, double, float>;
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth;
  for (int64_t i = 0; i < rows; i += kWidth) {
    const int r = static_cast<int>(min(kWidth, rows - i));
    for (int64_t j = 0; j < columns; j += kWidth) {
      const int c = static_cast<int>(min(kWidth, columns - j));
      const From* source = from + i * from_row + j;
      To* target = to + j * to_row + i;
      V block[kWidth];
      if (r == kWidth && c == kWidth) {
#pragma GCC unroll 16
        for (int k = 0; k < kWidth; ++k) block[k] = V::load(source + k * from_row);
        transpose_square<A>(block);
#pragma GCC unroll 16
        for (int k = 0; k < kWidth; ++k) block[k].store(target + k * to_row);
      } else {
#pragma GCC unroll 16
        for (int k = 0; k < kWidth; ++k) block[k] = k < r ? V::load(source + k * from_row, c) : V::zero();
        transpose_square<A>(block);
#pragma GCC unroll 16
        for (int k = 0; k < kWidth; ++k) {
          if (k < c) block[k].store(target + k * to_row, r);
        }
      }
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
