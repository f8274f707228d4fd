// Scratch memory and element copies of the pointwise and grouped kernels.
#pragma once

#include "simd.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Uses of scratch that are alive at the same time on one thread.
enum class Slot {
  kFilter,   // the filter as a kernel wants it, shared by all threads
  kBias,     // the bias as accumulators, shared
  kTaps,     // the taps of a pass, shared
  kPartial,  // partial sums of a filter or bias gradient, shared
  kPanel,    // gathered input
  kBand,     // copied input
  kBand2,    // copied output gradient
  kOutput,   // output that cannot be written in place
  kTurned,   // the same, turned
  kTable,    // pointers to the input
  kTargets,  // pointers to the output
  kZeros,    // zeros, never written
  kCount
};

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

/// Lanes of x (0 .. n - 1) and y (n .. 2 n - 1), vectors of the compiler, chosen by constant indices.
template <class Raw, size_t... kIndex>
CNNEXT_INLINE Raw shuffle_raw(Raw x, Raw y, std::index_sequence<kIndex...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(x, y, static_cast<int>(kIndex)...);
#else
  typedef std::conditional_t<sizeof(x[0]) == 4, int32_t, int64_t> Index __attribute__((vector_size(sizeof(Raw))));
  return __builtin_shuffle(x, y, Index{static_cast<int>(kIndex)...});
#endif
}

/// Lanes of a (0 .. kWidth - 1) and b (kWidth .. 2 kWidth - 1), chosen by constant indices, one for each lane.
template <class A, class Indices>
CNNEXT_INLINE Vec<A> shuffle(Vec<A> a, Vec<A> b, Indices indices) {
  typedef A Raw __attribute__((vector_size(sizeof(Vec<A>))));
  Raw x, y;
  __builtin_memcpy(&x, &a, sizeof(x));
  __builtin_memcpy(&y, &b, sizeof(y));
  const Raw z = shuffle_raw(x, y, indices);
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

template <size_t kFirst, size_t kWidth, size_t... kLane>
constexpr auto blend_even_indices(std::index_sequence<kLane...>) {
  return std::index_sequence<(kLane % 2 == 0 ? kFirst + kLane / 2 : kWidth + kLane)...>{};
}

/// to[i * step] = from[i].
/// NOTE: with step 2 the elements between are read and written back unchanged, so nobody else may write them meanwhile.
template <class From, class To>
CNNEXT_INLINE void scatter_run(const From* from, To* to, int64_t step, int64_t count) {
  using A = std::conditional_t<std::is_same_v<From, double>, double, float>;
  using V = Vec<A>;
  constexpr int64_t kWidth = V::kWidth;
  if (step == 1) {
    copy_run(from, 1, to, count);
    return;
  }
  int64_t i = 0;
  if constexpr (std::is_same_v<From, To>) {
    // The last vector is left out: the element after the last one may be another's.
    for (; step == 2 && i + kWidth < count; i += kWidth) {
      const V values = V::load(from + i), low = V::load(to + 2 * i), high = V::load(to + 2 * i + kWidth);
      shuffle(values, low, blend_even_indices<0, kWidth>(Lanes<A>{})).store(to + 2 * i);
      shuffle(values, high, blend_even_indices<kWidth / 2, kWidth>(Lanes<A>{})).store(to + 2 * i + kWidth);
    }
  }
  for (; i < count; ++i) store_scalar<A>(to + i * step, load_scalar<A>(from + i));
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

/// Four floats.
typedef float Quad __attribute__((vector_size(16)));

CNNEXT_INLINE Quad load_quad(const float* p) {
  Quad quad;
  __builtin_memcpy(&quad, p, sizeof(quad));
  return quad;
}

/// A vector of quads, `stride` floats apart.
CNNEXT_INLINE Vec<float> load_quads(const float* p, int64_t stride) {
#if defined(CNNEXT_AVX512)
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + stride), 1);
  v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * stride), 2);
  return _mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * stride), 3);
#elif defined(CNNEXT_AVX2)
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
#else
  (void)stride;
  return Vec<float>::load(p);
#endif
}

/// Indices that interleave pairs (kRun = 1) or pairs of pairs (kRun = 2) within each quad of two vectors of kWidth
/// floats.
template <size_t kRun, size_t kHigh, size_t kWidth, size_t... kLane>
constexpr auto quad_zip_indices(std::index_sequence<kLane...>) {
  return std::index_sequence<(kLane / 4 * 4 + kHigh * 2 + (kRun == 1 ? kLane % 4 / 2 : kLane % 2) +
                              (kRun == 1 ? kLane % 2 : kLane % 4 / 2) * kWidth)...>{};
}

/// Transposes the 4 x 4 block that each quad of a, b, c, d forms: a takes their first elements, d their last.
template <class Raw>
CNNEXT_INLINE void transpose_quads(Raw& a, Raw& b, Raw& c, Raw& d) {
  constexpr size_t kWidth = sizeof(Raw) / sizeof(float);
  constexpr std::make_index_sequence<kWidth> kLanes;
  const Raw ab_low = shuffle_raw(a, b, quad_zip_indices<1, 0, kWidth>(kLanes));
  const Raw ab_high = shuffle_raw(a, b, quad_zip_indices<1, 1, kWidth>(kLanes));
  const Raw cd_low = shuffle_raw(c, d, quad_zip_indices<1, 0, kWidth>(kLanes));
  const Raw cd_high = shuffle_raw(c, d, quad_zip_indices<1, 1, kWidth>(kLanes));
  a = shuffle_raw(ab_low, cd_low, quad_zip_indices<2, 0, kWidth>(kLanes));
  b = shuffle_raw(ab_low, cd_low, quad_zip_indices<2, 1, kWidth>(kLanes));
  c = shuffle_raw(ab_high, cd_high, quad_zip_indices<2, 0, kWidth>(kLanes));
  d = shuffle_raw(ab_high, cd_high, quad_zip_indices<2, 1, kWidth>(kLanes));
}

/// transpose() of float32 with at least 4 rows and columns, 4 columns at a time: 4 x 4 blocks need no shuffle across
/// lanes. The last rows and columns are done twice where their number is no multiple of 4.
inline void transpose_floats(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows,
                             int64_t columns) {
  constexpr int64_t kWidth = Vec<float>::kWidth;
  typedef float Raw __attribute__((vector_size(sizeof(Vec<float>))));
  int64_t i = 0;
  for (; i + kWidth <= rows; i += kWidth) {
    for (int64_t j = 0; j < columns; j += 4) {
      const int64_t column = min(j, columns - 4);
      const float* source = from + i * from_row + column;
      Raw block[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const Vec<float> quads = load_quads(source + k * from_row, 4 * from_row);
        __builtin_memcpy(&block[k], &quads, sizeof(quads));
      }
      transpose_quads(block[0], block[1], block[2], block[3]);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) __builtin_memcpy(to + (column + k) * to_row + i, &block[k], sizeof(Raw));
    }
  }
  for (; i < rows; i += 4) {
    const int64_t row = min(i, rows - 4);
    for (int64_t j = 0; j < columns; j += 4) {
      const int64_t column = min(j, columns - 4);
      const float* source = from + row * from_row + column;
      Quad block[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) block[k] = load_quad(source + k * from_row);
      transpose_quads(block[0], block[1], block[2], block[3]);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) __builtin_memcpy(to + (column + k) * to_row + row, &block[k], sizeof(Quad));
    }
  }
}

/// Lane l of the k-th vector of three interleaved rows comes from row (k * kWidth + l) % 3, column (k * kWidth + l)
/// / 3. kSecond = 0: lanes of rows 0 and 1, the others whatever; kSecond = 1: those, and row 2 as the second operand.
template <size_t k, size_t kWidth, int kSecond, size_t... kLane>
constexpr auto triple_indices(std::index_sequence<kLane...>) {
  if constexpr (kSecond == 0) {
    return std::index_sequence<((k * kWidth + kLane) % 3 % 2 * kWidth + (k * kWidth + kLane) / 3)...>{};
  } else {
    return std::index_sequence<((k * kWidth + kLane) % 3 == 2 ? kWidth + (k * kWidth + kLane) / 3 : kLane)...>{};
  }
}

/// to[3 * j + i] = from[i * from_row + j] for i < 3, j < columns: planes of an RGB image to pixels.
inline void interleave_three(const float* from, int64_t from_row, float* to, int64_t columns) {
  using V = Vec<float>;
  constexpr size_t kWidth = V::kWidth;
  int64_t j = 0;
  for (; j + V::kWidth <= columns; j += V::kWidth) {
    const V a = V::load(from + j), b = V::load(from + from_row + j), c = V::load(from + 2 * from_row + j);
    const auto store = [&](auto k) __attribute__((always_inline)) {
      const V pair = shuffle(a, b, triple_indices<k, kWidth, 0>(Lanes<float>{}));
      shuffle(pair, c, triple_indices<k, kWidth, 1>(Lanes<float>{})).store(to + 3 * j + k * V::kWidth);
    };
    store(std::integral_constant<size_t, 0>{});
    store(std::integral_constant<size_t, 1>{});
    store(std::integral_constant<size_t, 2>{});
  }
  for (; j < columns; ++j) {
    for (int64_t i = 0; i < 3; ++i) to[3 * j + i] = from[i * from_row + j];
  }
}

/// to[j * to_row + i] = from[i * from_row + j] for i < rows, j < columns, converted where the types differ.
/// Only those elements are read and written.
template <class From, class To>
inline void transpose(const From* from, int64_t from_row, To* to, int64_t to_row, int64_t rows, int64_t columns) {
  using A = std::conditional_t<std::is_same_v<From, double>, double, float>;
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth;
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, float>) {
    if (rows == 3 && to_row == 3) return interleave_three(from, from_row, to, columns);
    if (rows >= 4 && columns >= 4) return transpose_floats(from, from_row, to, to_row, rows, columns);
  }
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
