// The register tile that the pointwise and grouped kernels end in: at most 6 rows x kTileVectors vectors of
//
//   c[i][j] = activation(bias + addend + sum over s, d of a[s][i][a_offset + d * a_step] * b[s][d * b_step + j])
//
// with segments s and depths d.
//
// A row element is broadcast, a column run of b is loaded as vectors, so one step of d costs `rows` broadcasts and a
// few loads for rows x vectors multiply-adds: enough for the multiply-add units to be the limit on every ISA. Pointers
// are given per segment (a filter tap, an image row), so that a convolution reads its input in place.
//
// Limit: one vector multiply-add per unit and cycle; measured 97 to 100 % of it from a depth of 128, columns in L2.
//
// Assumes: b may be read for padded_columns(columns) x depth; c is written for `columns` lanes only.
// The order of the sum is s, then d, whatever the tile: results do not depend on how a problem is cut into tiles.
#pragma once

#include "epilogue.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// 6 x 4 accumulators leave 8 of the 32 registers of AVX-512 for operands; 6 x 2 leave 4 of 16.
constexpr int kTileRows = 6;
#if defined(CNNEXT_AVX512)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif

template <class A>
constexpr int kTileColumns = kTileVectors * Vec<A>::kWidth;

/// Operands of one tile.
template <class A>
struct GemmTile {
  const A* const* a;  // (segments, kTileRows)
  const A* const* b;  // (segments)
  int64_t a_offset;   // added to every a, in elements
  int64_t a_step, b_step;
  int64_t segments, depth;
  A* const* c;             // (rows)
  int columns;             // 1 .. kTileColumns
  const A* const* addend;  // (rows) or null: c itself where a sum goes on, a residual branch
  bool finish;             // add the bias and apply the activation
  const A* row_bias;       // (rows) or null
  const A* column_bias;    // (columns) or null
  Activation activation;
};

/// Half a vector: for a last vector of few columns, it takes half the time where units are half a vector wide.
#if defined(CNNEXT_AVX512) || defined(CNNEXT_AVX2)
constexpr bool kHasHalf = true;
#else
constexpr bool kHasHalf = false;
#endif

template <class A>
struct HalfVector {
  typedef A Raw __attribute__((vector_size(kHasHalf ? sizeof(Vec<A>) / 2 : sizeof(Vec<A>))));
  CNNEXT_INLINE static Raw load(const A* p) {
    Raw raw;
    __builtin_memcpy(&raw, p, sizeof(raw));
    return raw;
  }
  /// The half as the first lanes of a vector.
  CNNEXT_INLINE static Vec<A> widen(Raw raw) {
    Vec<A> v = Vec<A>::zero();
    __builtin_memcpy(&v, &raw, sizeof(raw));
    return v;
  }
};

/// kVectors vectors of columns, the last of them half a vector if kHalf.
template <class A, int kRows, int kVectors, bool kHalf>
[[gnu::noinline]] void gemm_tile_kernel(const GemmTile<A>& t) {
  using V = Vec<A>;
  using Half = typename HalfVector<A>::Raw;
  constexpr int kWidth = V::kWidth, kWhole = kVectors - kHalf;
  const int tail = t.columns - (kVectors - 1) * kWidth;  // lanes of the last vector
  V acc[kRows][kVectors];
  Half half_acc[kRows];

#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) acc[i][j] = V::zero();
    half_acc[i] = Half{};
  }

  for (int64_t s = 0; s < t.segments; ++s) {
    const A* a[kRows];
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) a[i] = t.a[s * kTileRows + i];
    const A* b = t.b[s];
    const int64_t a_step = t.a_step, b_step = t.b_step;
    int64_t offset = t.a_offset;
    for (int64_t d = t.depth; d > 0; --d) {
      V columns[kVectors];
#pragma GCC unroll 4
      for (int j = 0; j < kWhole; ++j) columns[j] = V::load(b + j * kWidth);
      Half half{};
      if constexpr (kHalf) half = HalfVector<A>::load(b + kWhole * kWidth);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const A value = a[i][offset];
        const V row(value);
#pragma GCC unroll 4
        for (int j = 0; j < kWhole; ++j) acc[i][j] = fma(row, columns[j], acc[i][j]);
        if constexpr (kHalf) half_acc[i] = (Half{} + value) * half + half_acc[i];  // contracted to a multiply-add
      }
      b += b_step;
      offset += a_step;
    }
  }

  const Epilogue<A> epilogue(t.activation);
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    if constexpr (kHalf) acc[i][kWhole] = HalfVector<A>::widen(half_acc[i]);
    const auto add_columns = [&](const A* addend) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors - 1; ++j) acc[i][j] += V::load(addend + j * kWidth);
      acc[i][kVectors - 1] += V::load(addend + (kVectors - 1) * kWidth, tail);
    };
    if (t.addend) add_columns(t.addend[i]);
    if (t.finish) {
      if (t.column_bias) add_columns(t.column_bias);
      if (t.row_bias) {
        const V bias(t.row_bias[i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) acc[i][j] += bias;
      }
      epilogue.apply(acc[i]);
    }
    A* c = t.c[i];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors - 1; ++j) acc[i][j].store(c + j * kWidth);
    if (tail < kWidth) {
      acc[i][kVectors - 1].store(c + (kVectors - 1) * kWidth, tail);
    } else {
      acc[i][kVectors - 1].store(c + (kVectors - 1) * kWidth);
    }
  }
}

template <class A>
struct GemmTileKernels {
  static constexpr int kCount = kTileRows * kTileVectors * 2;
  void (*kernels[kCount])(const GemmTile<A>&);
};

/// Kernel of (rows, vectors, half) at ((rows - 1) * kTileVectors + vectors - 1) * 2 + half.
template <class A, size_t... kIndex>
constexpr GemmTileKernels<A> gemm_tile_kernels(std::index_sequence<kIndex...>) {
  return {{gemm_tile_kernel < A, kIndex / 2 / kTileVectors + 1, kIndex / 2 % kTileVectors + 1,
           kHasHalf && kIndex % 2 == 1 > ...}};
}

/// Columns of a panel that `columns` columns need: what the kernel reads of b.
template <class A>
CNNEXT_INLINE int64_t padded_columns(int64_t columns) {
  constexpr int64_t kUnit = kHasHalf ? Vec<A>::kWidth / 2 : Vec<A>::kWidth;
  return (columns + kUnit - 1) / kUnit * kUnit;
}

/// Runs one tile of `rows` x t.columns.
template <class A>
void gemm_tile(int rows, const GemmTile<A>& t) {
  constexpr int kWidth = Vec<A>::kWidth;
  static constexpr GemmTileKernels<A> kTable =
      gemm_tile_kernels<A>(std::make_index_sequence<GemmTileKernels<A>::kCount>{});
  const int vectors = (t.columns + kWidth - 1) / kWidth;
  const int half = t.columns - (vectors - 1) * kWidth <= kWidth / 2;
  kTable.kernels[((rows - 1) * kTileVectors + vectors - 1) * 2 + half](t);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
