// Depthwise convolution, NHWC:
//
//   y[n, p, q, k] = activation(bias[k] + sum over r, s of x[n, p * stride_h + r * dilation_h - pad_h,
//                                                          q * stride_w + s * dilation_w - pad_w, k / m] * w[k, r, s])
//
// x: N x H x W x C, w: K x R x S, y: N x P x Q x K, m = K / C. An index of the parallel loop owns one row y[n, p].
// The arithmetic is in depthwise_correlate_nhwc.h.
#pragma once

#include "depthwise_correlate_nhwc.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, class A>
void depthwise_forward_nhwc(const ConvParams& p, const Parallel& parallel, const T* x, const T* w, const T* bias, T* y) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int64_t multiplier = p.K / p.C;
  Scratch<A, kFilterScratch> filter(p.R * p.S * p.K + kWidth);
  pack_filter_nhwc(p, w, filter.data());
  Scratch<A, 1024 + kWidth> packed_bias(bias ? p.K + kWidth : 0);
  for (int64_t k = 0; bias && k < p.K; ++k) packed_bias[(k % multiplier) * p.C + k / multiplier] = load_scalar<A>(bias + k);
  Scratch<ColumnTap, 32> taps(p.S);
  for (int64_t s = 0; s < p.S; ++s) taps[s] = {s * p.dilation_w - p.pad_w, s * p.K};

  parallel(0, p.N * p.P, grain_for(p.Q * p.K * p.R * p.S), [&](int64_t begin, int64_t end) {
    Scratch<SourceRow<T, A>, 32> rows(p.R);
    // With a multiplier the channels of a row are computed grouped by j, and put in order afterwards.
    Scratch<T, 2048> grouped(multiplier > 1 ? p.Q * p.K : 0);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / p.P, out_h = index % p.P;
      int64_t num_rows = 0;
      for (int64_t r = 0; r < p.R; ++r) {
        const int64_t h = out_h * p.stride_h + r * p.dilation_h - p.pad_h;
        if (h < 0 || h >= p.H) continue;
        rows[num_rows++] = {x + n * p.x_strides.n + h * p.x_strides.h, filter.data() + r * p.S * p.K};
      }
      T* y_row = y + n * p.y_strides.n + out_h * p.y_strides.h;
      CorrelateRow<T, A> row{rows.data(), num_rows,
                             taps.data(), p.S,
                             p.W,         p.x_strides.w,
                             p.stride_w,  multiplier > 1 ? grouped.data() : y_row,
                             multiplier > 1 ? p.K : p.y_strides.w,
                             p.Q,         p.C,
                             bias ? packed_bias.data() : nullptr,
                             Epilogue<A>(p.activation)};
      if (multiplier == 1) {
        correlate_row(row);
        continue;
      }
      for (int64_t j = 0; j < multiplier; ++j) {
        correlate_row(row);
        row.out += p.C;
        if (row.bias) row.bias += p.C;
        for (int64_t i = 0; i < num_rows; ++i) rows[i].weights += p.C;
      }
      for (int64_t q = 0; q < p.Q; ++q) {
        for (int64_t j = 0; j < multiplier; ++j) {
          const T* from = grouped.data() + q * p.K + j * p.C;
          T* to = y_row + q * p.y_strides.w + j;
          for (int64_t c = 0; c < p.C; ++c) to[c * multiplier] = from[c];
        }
      }
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
