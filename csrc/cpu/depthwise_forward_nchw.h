// Depthwise convolution, NCHW:
//
//   y[n, k, p, q] = activation(bias[k] + sum over r, s of x[n, k / m, p * stride_h + r * dilation_h - pad_h,
//                                                          q * stride_w + s * dilation_w - pad_w] * w[k, r, s])
//
// x: N x C x H x W, w: K x R x S, y: N x K x P x Q, m = K / C. An index of the parallel loop owns a band of rows of the m
// planes y[n, k] that read the same plane x[n, c]. The band's source rows are packed once (depthwise_planes.h), then
// each output plane is a correlation of them (depthwise_correlate_nchw.h).
#pragma once

#include "depthwise_correlate_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

template <class T, class A>
void depthwise_forward_nchw(const ConvParams& p, const Parallel& parallel, const T* x, const T* w, const T* bias, T* y) {
  const int64_t multiplier = p.K / p.C, taps = p.R * p.S;
  const PackedRows packing(p.stride_w, -p.pad_w, p.Q + (p.S - 1) * p.dilation_w / p.stride_w);
  const int64_t span = (p.R - 1) * p.dilation_h + 1;
  const int64_t rows_per_band = band_rows(packing.pitch, span, p.stride_h, p.P);
  const int64_t bands = ceil_div(p.P, rows_per_band);

  // Columns of R taps where a kernel keeps such columns in registers, else R * S columns of one tap.
  const bool whole_columns = p.dilation_h == 1 && has_column_kernel(p.R, p.stride_h);
  const int64_t column_taps = whole_columns ? p.R : 1, columns = taps / column_taps;
  Scratch<int64_t, 64> offsets(columns);
  for (int64_t l = 0; l < columns; ++l) {
    offsets[l] = l / p.S * p.dilation_h * packing.pitch + packing.offset(l % p.S * p.dilation_w - p.pad_w);
  }

  parallel(0, p.N * p.C * bands, grain_for(multiplier * rows_per_band * p.Q * taps), [&](int64_t begin, int64_t end) {
    Scratch<A, kBandScratch> packed(packing.size((rows_per_band - 1) * p.stride_h + span));
    Scratch<A, 64> weights(taps);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / bands / p.C, c = index / bands % p.C, out_h = index % bands * rows_per_band;
      const int64_t rows = min(rows_per_band, p.P - out_h);
      packing.fill(packed.data(), x + n * p.x_strides.n + c * p.x_strides.c, p.x_strides.h, p.H, p.W,
                   out_h * p.stride_h - p.pad_h, (rows - 1) * p.stride_h + span);
      for (int64_t k = c * multiplier; k < (c + 1) * multiplier; ++k) {
        for (int64_t s = 0; s < p.S; ++s) {
          for (int64_t r = 0; r < p.R; ++r) {
            weights[whole_columns ? s * p.R + r : r * p.S + s] = load_scalar<A>(w + k * taps + r * p.S + s);
          }
        }
        correlate_plane(FilterColumns<A>{offsets.data(), weights.data(), columns, column_taps, p.stride_h}, packed.data(),
                        packing.pitch, bias ? load_scalar<A>(bias + k) : A(0), Epilogue<A>(p.activation),
                        y + n * p.y_strides.n + k * p.y_strides.c + out_h * p.y_strides.h, p.y_strides.h, rows, p.Q);
      }
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
