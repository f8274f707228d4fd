// Depthwise convolution, NHWC:
//
//   y[n, p, q, k] = activation(bias[k] + sum over r, s of x[n, p * stride_h + r * dilation_h - pad_h,
//                                                          q * stride_w + s * dilation_w - pad_w, k / m] * w[k, r, s])
//
// x: N x H x W x C, w: K x R x S, y: N x P x Q x K, m = K / C. An index of the parallel loop owns one row y[n, p];
// neighbouring rows of a chunk are computed together.
// The arithmetic is in depthwise_correlate_nhwc.h.
#pragma once

#include "depthwise_correlate_nhwc.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, class A>
void depthwise_forward_nhwc(const ConvParams& p, const Parallel& parallel, const T* x, const T* w, const T* bias,
                            T* y) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int64_t multiplier = p.K / p.C;
  const PackedFilter<A> filter(p, w);
  Scratch<A, 1024 + kWidth> packed_bias(bias ? p.K + kWidth : 0);
  for (int64_t j = 0; bias && j < multiplier; ++j) {
    for (int64_t c = 0; c < p.C; ++c) packed_bias[j * p.C + c] = load_scalar<A>(bias + c * multiplier + j);
  }
  Scratch<ColumnTap, 32> taps(p.S);
  for (int64_t s = 0; s < p.S; ++s) taps[s] = {s * p.dilation_w - p.pad_w, s};
  const bool prefetched = multiplier == 1 && is_prefetch_worthwhile<T>(p);

  parallel(0, p.N * p.P, depthwise_grain(p.Q * p.K * p.R * p.S), [&](int64_t begin, int64_t end) {
    SourceRows<T, A> rows(kOutRows * p.R);
    // With a multiplier the channels of a row are computed grouped by j, and put in order afterwards.
    const int64_t grouped_row = multiplier > 1 ? p.Q * p.K : 0;
    Scratch<T, 2048> grouped(kOutRows * grouped_row);
    int64_t step = 1;
    for (int64_t index = begin; index < end; index += step) {
      const int64_t n = index / p.P, out_h = index % p.P;
      // Neighbouring rows share source rows if the filter is not dilated.
      step = p.dilation_h == 1 ? min(kOutRows, min(end - index, p.P - out_h)) : 1;
      rows.clear();
      T* y_rows[kOutRows] = {};
      CorrelateRows<T, A> call{rows.data(),
                               0,
                               taps.data(),
                               p.S,
                               filter.taps(),
                               p.W,
                               p.x_strides.w,
                               p.stride_w,
                               {},
                               step,
                               multiplier > 1 ? p.K : p.y_strides.w,
                               p.Q,
                               p.C,
                               bias ? packed_bias.data() : nullptr,
                               Epilogue<A>(p.activation),
                               {},
                               {}};
      for (int o = 0; o < step; ++o) {
        y_rows[o] = y + n * p.y_strides.n + (out_h + o) * p.y_strides.h;
        call.out[o] = multiplier > 1 ? grouped.data() + o * grouped_row : y_rows[o];
        for (int64_t r = 0; r < p.R; ++r) {
          const int64_t h = (out_h + o) * p.stride_h + r * p.dilation_h - p.pad_h;
          if (h < 0 || h >= p.H) continue;
          rows.add(o, x + n * p.x_strides.n + h * p.x_strides.h, filter.row(0, r));
        }
      }
      call.num_rows = rows.size();
      if (prefetched && out_h + step < p.P) {
        // The source rows below those in use.
        const int64_t first = max(0, (out_h + step - 1) * p.stride_h + (p.R - 1) * p.dilation_h - p.pad_h + 1);
        const int64_t count = max(0, min(step * p.stride_h, p.H - first));
        call.source_to_come = {x + n * p.x_strides.n + first * p.x_strides.h, count, p.x_strides.h};
        call.out_to_come = {y_rows[0] + step * p.y_strides.h, min(step, p.P - out_h - step), p.y_strides.h};
      }
      if (multiplier == 1) {
        correlate_rows(call);
        continue;
      }
      for (int64_t j = 0; j < multiplier; ++j) {
        correlate_rows(call);
        for (int o = 0; o < step; ++o) call.out[o] += p.C;
        if (call.bias) call.bias += p.C;
        rows.advance_weights(filter.group());
      }
      for (int o = 0; o < step; ++o) ungroup_channels(p, grouped.data() + o * grouped_row, y_rows[o], p.y_strides.w);
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
