// Rows of a depthwise correlation in NCHW: the inner loop of both forward and backward_input.
//
//   out[i, j] = epilogue(bias + sum over columns l, row taps r of
//                        packed[(i * step + r) * pitch + offset_l + j] * weight[l * R + r])
//
// `packed` is a band of rows of one plane (depthwise_planes.h); a filter column l is R taps one above the other, with one
// offset. Taps that are not on consecutive rows are given as columns of one tap each (R = 1).
//
// Vectors run along the row. kRows output rows are computed together: the (kRows - 1) * step + R source vectors of a
// filter column sit in registers and serve all of them, and so does each broadcast weight.
// Limit: 9 fused multiply-adds a vector of outputs for 3x3; memory for small filters on large planes.
#pragma once

#include "depthwise_planes.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Output rows in registers. 7 divides the planes of MobileNet, and needs 32 registers.
constexpr int kRowBlock = Vec<float>::kWidth == 16 ? 7 : 4;

template <class A>
struct FilterColumns {
  const int64_t* offsets;  // of each column, in the packed rows of the first output row
  const A* weights;        // [column][R]
  int64_t count;
  int64_t R;     // taps of a column, on consecutive rows
  int64_t step;  // packed rows from one output row to the next
};

/// kRows output rows, one vector of columns; only the first `lanes` are stored. kR = 1 takes any step, else it is kStep.
template <int kRows, int kR, int kStep, class T, class A>
CNNEXT_INLINE void correlate_block(const FilterColumns<A>& columns, const A* packed, int64_t pitch, A bias,
                                   const Epilogue<A>& epilogue, T* out, int64_t out_stride, int lanes) {
  using V = Vec<A>;
  constexpr int kSourceRows = kR == 1 ? kRows : (kRows - 1) * kStep + kR;
  const int64_t source_stride = kR == 1 ? columns.step * pitch : pitch;

  V acc[kRows];
  for (int i = 0; i < kRows; ++i) acc[i] = V(bias);
  for (int64_t l = 0; l < columns.count; ++l) {
    const A* source = packed + columns.offsets[l];
    const A* weights = columns.weights + l * kR;
    V values[kSourceRows];
#pragma GCC unroll 32
    for (int h = 0; h < kSourceRows; ++h) values[h] = V::load(source + h * source_stride);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const V w(weights[r]);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) acc[i] = fma(values[kR == 1 ? i : i * kStep + r], w, acc[i]);
    }
  }

  epilogue.apply(acc);
  if (lanes == V::kWidth) {
    for (int i = 0; i < kRows; ++i) acc[i].store(out + i * out_stride);
  } else {
    for (int i = 0; i < kRows; ++i) acc[i].store(out + i * out_stride, lanes);
  }
}

/// `rows` x `width` outputs from packed rows.
template <int kR, int kStep, class T, class A>
void correlate_plane_rows(const FilterColumns<A>& columns, const A* packed, int64_t pitch, A bias,
                          const Epilogue<A>& epilogue, T* out, int64_t out_stride, int64_t rows, int64_t width) {
  constexpr int kWidth = Vec<A>::kWidth;
  const auto block = [&](auto block_rows, int64_t i) {
    for (int64_t j = 0; j < width; j += kWidth) {
      const int lanes = static_cast<int>(min(kWidth, width - j));
      correlate_block<block_rows, kR, kStep>(columns, packed + i * columns.step * pitch + j, pitch, bias, epilogue,
                                             out + i * out_stride + j, out_stride, lanes);
    }
  };
  constexpr std::integral_constant<int, kRowBlock> whole{};
  int64_t i = 0;
  for (; i + kRowBlock <= rows; i += kRowBlock) block(whole, i);
  // A remainder of half a block or more is cheaper as a whole block that computes some rows a second time.
  if (i < rows && rows >= kRowBlock && 2 * (rows - i) >= kRowBlock) {
    block(whole, rows - kRowBlock);
    i = rows;
  }
  for (; i < rows; ++i) block(std::integral_constant<int, 1>{}, i);
}

template <class T, class A>
void correlate_plane(const FilterColumns<A>& columns, const A* packed, int64_t pitch, A bias,
                     const Epilogue<A>& epilogue, T* out, int64_t out_stride, int64_t rows, int64_t width) {
  const auto run = [&](auto r, auto step) {
    correlate_plane_rows<r, step>(columns, packed, pitch, bias, epilogue, out, out_stride, rows, width);
  };
  constexpr std::integral_constant<int, 1> one{};
  if (columns.R == 1) {
    run(one, one);
  } else if (columns.step == 1) {
    dispatch_int<2, 3, 5, 7>(columns.R, [&](auto r) { run(r, one); });
  } else {
    dispatch_int<3, 5, 7>(columns.R, [&](auto r) { run(r, std::integral_constant<int, 2>{}); });
  }
}

/// Whether correlate_plane has a kernel for columns of R taps; if not they have to be split into columns of one.
CNNEXT_INLINE bool has_column_kernel(int64_t R, int64_t step) {
  return R == 1 || (step == 1 && R == 2) || ((step == 1 || step == 2) && (R == 3 || R == 5 || R == 7));
}

}  // namespace cnnext::cpu::CNNEXT_ISA
