// Depthwise convolution, NCHW:
//
//   y[n, k, p, q] = activation(bias[k] + sum over r, s of x[n, k / m, p * stride_h + r * dilation_h - pad_h,
//                                                          q * stride_w + s * dilation_w - pad_w] * w[k, r, s])
//
// x: N x C x H x W, w: K x R x S, y: N x K x P x Q, m = K / C. An index of the parallel loop owns a band of rows of one
// plane y[n, k]. The arithmetic is in depthwise_correlate_nchw.h.
#pragma once

#include "depthwise_narrow_nchw.h"

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
  const T* x_plane(const BandIterator& it) const {
    return x + it.n * p.x_strides.n + (p.K == p.C ? it.channel : it.channel / (p.K / p.C)) * p.x_strides.c;
  }
  T* y_plane(const BandIterator& it) const { return y + it.n * p.y_strides.n + it.channel * p.y_strides.c; }
};

/// What a call reads and writes soon.
template <class T>
struct ForwardAhead {
  RowsAhead<T> x, y;

  explicit ForwardAhead(const ConvParams& p) : x(p.H, p.W, p.x_strides.h), y(p.P, p.Q, p.y_strides.h) {}
};

/// Calls f(weights, bias, source plane, output plane, first row of the band) for each band of the range.
template <int kR, class T, class A, class F>
CNNEXT_INLINE void for_forward_bands(const ForwardCall<T, A>& call, int64_t begin, int64_t end, ForwardAhead<T>& ahead,
                                     const F& f) {
  const ConvParams& p = call.p;
  Scratch<A, 64> scratch(call.taps());
  BandIterator it(begin, call.bands, p.K);
  for (int64_t index = begin; index < end; ++index, it.next()) {
    const int64_t k = it.channel;
    const BandIterator next = index + call.bands < end ? it.next_plane() : it;
    ahead.x.select_plane(call.x_plane(it), call.x_plane(next));
    ahead.y.select_plane(call.y_plane(it), call.y_plane(next));
    const A* filter = load_filter(call.w + k * call.taps(), call.taps(), scratch.data());
    // Columns of one tap are in the order of the filter.
    const Weights<A> weights{filter, 1, kR == 1 ? 0 : p.S};
    f(weights, call.bias ? load_scalar<A>(call.bias + k) : A(0), call.x_plane(it), call.y_plane(it),
      it.band * kBandRows);
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
  ForwardAhead<T> ahead(p);

  for_forward_bands<kR>(
      call, begin, end, ahead, [&](const Weights<A>& weights, A bias, const T* x, T* y, int64_t first) {
        source.select_plane(x);
        for_row_blocks(min(kBandRows, p.P - first), [&](auto block_rows, int64_t i, int64_t rows) {
          source.select_rows((first + i) * p.stride_h - p.pad_h, (block_rows - 1) * p.stride_h + span);
          const T *next_x = ahead.x.at((first + i) * p.stride_h), *next_y = ahead.y.at(first + i);
          T* out = y + (first + i) * p.y_strides.h;
          for (int64_t q = 0, strip = 0; q < p.Q; q += V::kWidth, ++strip) {
            if (ahead.x.worthwhile() && q % kLine<T> == 0) {
              ahead.x.template prefetch<block_rows * kStep, kStep>(next_x + q * kStep);
              ahead.y.template prefetch<block_rows, 1>(next_y + q);
            }
            V acc[block_rows];
            for (int b = 0; b < block_rows; ++b) acc[b] = V(bias);
            accumulate_columns<block_rows, kR, kStep>(source, taps.strip(strip), call.columns, weights, p.stride_h,
                                                      acc);
            epilogue.apply(acc);
            store_rows(acc, out + q, p.y_strides.h, rows, static_cast<int>(min(V::kWidth, p.Q - q)));
          }
        });
      });
}

/// 3x3 filters on planes whose rows fit a vector.
template <class Source, class T, class A>
void forward_range_narrow(const ForwardCall<T, A>& call, Source& source, int64_t begin, int64_t end) {
  using V = Vec<A>;
  const ConvParams& p = call.p;
  const Epilogue<A> epilogue(p.activation);
  ForwardAhead<T> ahead(p);
  for_forward_bands<3>(call, begin, end, ahead,
                       [&](const Weights<A>& weights, A bias, const T* x, T* y, int64_t first) {
                         source.select_plane(x);
                         for_narrow_blocks<Source>(min(kBandRows, p.P - first), [&](auto n, int64_t i, int64_t rows) {
                           source.select_row((first + i) * p.stride_h - p.pad_h);
                           V acc[n];
                           for (int v = 0; v < n; ++v) acc[v] = V(bias);
                           correlate_narrow(source, weights, acc);
                           epilogue.apply(acc);
                           store_narrow<Source>(acc, y + (first + i) * p.y_strides.h, p.y_strides.h, rows, p.Q);
                         });
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
  parallel(0, p.N * p.K * bands, depthwise_grain(work), [&](int64_t begin, int64_t end) {
    if (is_narrow_filter(p) &&
        with_narrow_source<T, A>(call.x_shape(), p.stride_w, p.Q, p.y_strides.h, p.pad_h, p.pad_w,
                                 [&](auto& source) { forward_range_narrow(call, source, begin, end); })) {
      return;
    }
    if (!whole) {
      p.stride_w == 1 ? forward_range<1, 1, 1>(call, begin, end) : forward_range<1, 1, 0>(call, begin, end);
    } else if (p.stride_h == 2) {
      dispatch_fast_filter<T>(p.R, [&](auto r) { forward_range<r, 2, 2>(call, begin, end); });
    } else {
      dispatch_fast_filter<T>(p.R, [&](auto r) { forward_range<r, 1, 1>(call, begin, end); });
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
