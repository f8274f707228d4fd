// The register tile that every pointwise and grouped kernel ends in: a block of at most 6 rows x kTileVectors vectors of
//
//   c[i][j] = activation( c0 + sum over segments s, depth d of a[s][i][a_offset + d * a_step] * b[s][d * b_step + j]  + bias )
//
// A row element is broadcast, a column run of b is loaded as vectors, so one step of d costs `rows` broadcasts and a few
// loads for rows x vectors multiply-adds: enough for the multiply-add units to be the limit on every ISA. Pointers are
// given per segment (a filter tap, an image row), so that a convolution reads its input in place.
//
// Limit: one vector multiply-add per unit and cycle; measured 95 % of it with the columns in L2.
//
// Assumes: b may be read for whole vectors, (columns rounded up) x depth; c is written for `columns` lanes only.
// The order of the sum is s, then d, whatever the tile: results do not depend on how a problem is cut into tiles.
#pragma once

#include "activation.h"

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
  A* const* c;      // (rows)
  int columns;      // 1 .. kTileColumns
  bool accumulate;  // c0 is what c holds, else 0
  bool finish;      // add the bias and apply the activation
  const A* row_bias;     // (rows) or null
  const A* column_bias;  // (columns) or null
  Activation activation;
};

template <class A, int kRows, int kVectors>
[[gnu::noinline]] void gemm_tile_kernel(const GemmTile<A>& t) {
  using V = Vec<A>;
  constexpr int kWidth = V::kWidth;
  const int tail = t.columns - (kVectors - 1) * kWidth;  // lanes of the last vector, 1 .. kWidth
  V acc[kRows][kVectors];

#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) acc[i][j] = V::zero();
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
      for (int j = 0; j < kVectors; ++j) columns[j] = V::load(b + j * kWidth);
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        const V row(a[i][offset]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) acc[i][j] = fma(row, columns[j], acc[i][j]);
      }
      b += b_step;
      offset += a_step;
    }
  }

#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
    A* c = t.c[i];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const bool last = j == kVectors - 1;
      V v = acc[i][j];
      if (t.accumulate) v = v + (last ? V::load(c + j * kWidth, tail) : V::load(c + j * kWidth));
      if (t.finish) {
        if (t.row_bias) v = v + V(t.row_bias[i]);
        if (t.column_bias) {
          const A* bias = t.column_bias + j * kWidth;
          v = v + (last ? V::load(bias, tail) : V::load(bias));
        }
        v = activate(v, t.activation);
      }
      if (last && tail < kWidth) {
        v.store(c + j * kWidth, tail);
      } else {
        v.store(c + j * kWidth);
      }
    }
  }
}

/// Runs one tile of `rows` x t.columns.
template <class A>
inline void gemm_tile(int rows, const GemmTile<A>& t) {
  using Kernel = void (*)(const GemmTile<A>&);
#if defined(CNNEXT_AVX512)
  static constexpr Kernel kKernels[kTileRows][kTileVectors] = {
      {gemm_tile_kernel<A, 1, 1>, gemm_tile_kernel<A, 1, 2>, gemm_tile_kernel<A, 1, 3>, gemm_tile_kernel<A, 1, 4>},
      {gemm_tile_kernel<A, 2, 1>, gemm_tile_kernel<A, 2, 2>, gemm_tile_kernel<A, 2, 3>, gemm_tile_kernel<A, 2, 4>},
      {gemm_tile_kernel<A, 3, 1>, gemm_tile_kernel<A, 3, 2>, gemm_tile_kernel<A, 3, 3>, gemm_tile_kernel<A, 3, 4>},
      {gemm_tile_kernel<A, 4, 1>, gemm_tile_kernel<A, 4, 2>, gemm_tile_kernel<A, 4, 3>, gemm_tile_kernel<A, 4, 4>},
      {gemm_tile_kernel<A, 5, 1>, gemm_tile_kernel<A, 5, 2>, gemm_tile_kernel<A, 5, 3>, gemm_tile_kernel<A, 5, 4>},
      {gemm_tile_kernel<A, 6, 1>, gemm_tile_kernel<A, 6, 2>, gemm_tile_kernel<A, 6, 3>, gemm_tile_kernel<A, 6, 4>},
  };
#else
  static constexpr Kernel kKernels[kTileRows][kTileVectors] = {
      {gemm_tile_kernel<A, 1, 1>, gemm_tile_kernel<A, 1, 2>}, {gemm_tile_kernel<A, 2, 1>, gemm_tile_kernel<A, 2, 2>},
      {gemm_tile_kernel<A, 3, 1>, gemm_tile_kernel<A, 3, 2>}, {gemm_tile_kernel<A, 4, 1>, gemm_tile_kernel<A, 4, 2>},
      {gemm_tile_kernel<A, 5, 1>, gemm_tile_kernel<A, 5, 2>}, {gemm_tile_kernel<A, 6, 1>, gemm_tile_kernel<A, 6, 2>},
  };
#endif
  const int vectors = (t.columns + Vec<A>::kWidth - 1) / Vec<A>::kWidth;
  kKernels[rows - 1][vectors - 1](t);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
