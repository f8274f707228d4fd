// Depthwise convolution, NCHW:
//
//   y[n, k, p, q] = activation(bias[k] + sum over r, s of x[n, k / m, p * stride_h + r * dilation_h - pad_h,
//                                                          q * stride_w + s * dilation_w - pad_w] * w[k, r, s])
//
// x: N x C x H x W, w: K x R x S, y: N x K x P x Q, m = K / C. An index of the parallel loop owns a band of rows of one
// plane y[n, k]. The arithmetic is in depthwise_correlate_nchw.h.
#pragma once

#include "depthwise_correlate_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, class A>
struct ForwardCall {
  const ConvParams& p;
  const T *x, *w, *bias;
  T* y;
  const TapPosition* positions;  // of the filter columns
  int64_t columns;
  int64_t bands;  // of a plane

  int64_t taps() const { return p.R * p.S; }
  PlaneShape x_shape() const { return {p.H, p.W, p.x_strides.h}; }
};

/// Calls f(weights, bias, source plane, output plane, first row of the band) for each band of the range.
template <int kR, class T, class A, class F>
CNNEXT_INLINE void for_forward_bands(const ForwardCall<T, A>& call, int64_t begin, int64_t end, const F& f) {
  const ConvParams& p = call.p;
  const int64_t multiplier = p.K / p.C;
  Scratch<A, 64> scratch(call.taps());
  BandIterator it(begin, call.bands, p.K);
  for (int64_t index = begin; index < end; ++index, it.next()) {
    const int64_t k = it.channel, c = multiplier == 1 ? k : k / multiplier;
    const A* filter = load_filter(call.w + k * call.taps(), call.taps(), scratch.data());
    // Columns of one tap are in the order of the filter.
    const Weights<A> weights{filter, 1, kR == 1 ? 0 : p.S};
    f(weights, call.bias ? load_scalar<A>(call.bias + k) : A(0), call.x + it.n * p.x_strides.n + c * p.x_strides.c,
      call.y + it.n * p.y_strides.n + k * p.y_strides.c, it.band * kBandRows);
  }
}

template <int kR, int kStep, int kStride, class T, class A>
void forward_range(const ForwardCall<T, A>& call, int64_t begin, int64_t end) {
  using V = Vec<A>;
  const ConvParams& p = call.p;
  const Epilogue<A> epilogue(p.activation);
  const int64_t span = (p.R - 1) * p.dilation_h + 1, table_size = (kRowBlock - 1) * p.stride_h + span;
  Scratch<const T*, 48> row_pointers(table_size);
  ZeroRow<T> zeros(p.W);
  RowSource<kStride, T, A> source(call.x_shape(), row_pointers.data(), table_size, zeros.data(), p.stride_w);
  const StripTaps<RowSource<kStride, T, A>> taps(source, call.positions, call.columns, p.Q, p.stride_w, V::kWidth);

  for_forward_bands<kR>(call, begin, end, [&](const Weights<A>& weights, A bias, const T* x, T* y, int64_t first) {
    source.select_plane(x);
    for_row_blocks(min(kBandRows, p.P - first), [&](auto block_rows, int64_t i, int64_t rows) {
      source.select_rows((first + i) * p.stride_h - p.pad_h, (block_rows - 1) * p.stride_h + span);
      T* out = y + (first + i) * p.y_strides.h;
      for (int64_t q = 0, strip = 0; q < p.Q; q += V::kWidth, ++strip) {
        V acc[block_rows];
        for (int b = 0; b < block_rows; ++b) acc[b] = V(bias);
        accumulate_columns<block_rows, kR, kStep>(source, taps.strip(strip), call.columns, weights, p.stride_h, acc);
        epilogue.apply(acc);
        store_rows(acc, out + q, p.y_strides.h, rows, static_cast<int>(min(V::kWidth, p.Q - q)));
      }
    });
  });
}

/// Two rows a vector: 4 vectors make a block of 8 rows.
template <int kR, class T, class A>
void forward_range_pairs(const ForwardCall<T, A>& call, int64_t begin, int64_t end) {
  using V = Vec<A>;
  constexpr int kPairs = 4;
  const ConvParams& p = call.p;
  const Epilogue<A> epilogue(p.activation);
  RowPairSource<T, A> source(call.x_shape());
  const StripTaps<RowPairSource<T, A>> taps(source, call.positions, call.columns, 2 * p.W, 1, V::kWidth);

  for_forward_bands<kR>(call, begin, end, [&](const Weights<A>& weights, A bias, const T* x, T* y, int64_t first) {
    source.select_plane(x);
    const int64_t last = min(first + kBandRows, p.P);
    for (int64_t i = first; i < last; i += 2 * kPairs) {
      source.select_rows(i - p.pad_h, 2 * (kPairs - 1) + kR);
      V acc[kPairs];
      for (int b = 0; b < kPairs; ++b) acc[b] = V(bias);
      accumulate_columns<kPairs, kR, 2>(source, taps.strip(0), call.columns, weights, 2, acc);
      epilogue.apply(acc);
      store_row_pairs(acc, y + i * p.W, p.W, last - i);
    }
  });
}

/// Whether there are kernels that take a filter as whole columns of R taps.
template <class T>
bool has_whole_columns(const ConvParams& p) {
  return p.dilation_h == 1 && is_fast_filter<T>(p.R) && p.stride_h == p.stride_w && p.stride_h <= 2;
}

/// The first taps of the filter columns in x: columns of R taps if `whole`, else of one.
CNNEXT_INLINE void place_filter_columns(const ConvParams& p, int64_t columns, TapPosition* positions) {
  for (int64_t l = 0; l < columns; ++l) positions[l] = {l / p.S * p.dilation_h, l % p.S * p.dilation_w - p.pad_w};
}

template <class T, class A>
void depthwise_forward_nchw(const ConvParams& p, const Parallel& parallel, const T* x, const T* w, const T* bias,
                            T* y) {
  const bool whole = has_whole_columns<T>(p);
  const int64_t columns = whole ? p.S : p.R * p.S, bands = ceil_div(p.P, kBandRows);
  Scratch<TapPosition, 64> positions(columns);
  place_filter_columns(p, columns, positions.data());
  const ForwardCall<T, A> call{p, x, w, bias, y, positions.data(), columns, bands};

  const int64_t work = min(p.P, kBandRows) * p.Q * p.R * p.S;
  parallel(0, p.N * p.K * bands, grain_for(work), [&](int64_t begin, int64_t end) {
    if (!whole) {
      p.stride_w == 1 ? forward_range<1, 1, 1>(call, begin, end) : forward_range<1, 1, 0>(call, begin, end);
    } else if (p.stride_h == 2) {
      dispatch_fast_filter<T>(p.R, [&](auto r) { forward_range<r, 2, 2>(call, begin, end); });
    } else if (p.R == 3 && RowPairSource<T, A>::suits(call.x_shape(), p.Q, p.y_strides.h)) {
      if constexpr (kMaxFastFilter<T> >= 3) forward_range_pairs<3>(call, begin, end);
    } else {
      dispatch_fast_filter<T>(p.R, [&](auto r) { forward_range<r, 1, 1>(call, begin, end); });
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
