// Gradient of depthwise convolution with respect to its input, NCHW, for a 3x3 filter with stride 2 and padding 1.
//
//   dx[2i, 2j]         = dy[i, j] * w[1, 1]
//   dx[2i, 2j + 1]     = dy[i, j] * w[1, 2] + dy[i, j + 1] * w[1, 0]
//   dx[2i + 1, 2j]     = dy[i, j] * w[2, 1] + dy[i + 1, j] * w[0, 1]
//   dx[2i + 1, 2j + 1] = dy[i, j] * w[2, 2] + dy[i, j + 1] * w[2, 0] + dy[i + 1, j] * w[0, 2] + dy[i + 1, j + 1] * w[0,
//   0]
//
// dx: N x C x H x W, dy: N x C x P x Q. The four classes of pixels together, since four vectors of dy are all that a
// vector of each needs: 9 fused multiply-adds for 4 vectors stored. An index of the parallel loop owns a band of one
// plane, as in depthwise_backward_input_nchw.h. Limit: memory, four fifths of which is dx.
#pragma once

#include "depthwise_correlate_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Whether the kernel runs the problem.
template <class T>
bool suits_backward_input_stride2(const ConvParams& p) {
  return kMaxFastFilter<T> >= 3 && p.K == p.C && p.R == 3 && p.S == 3 && p.stride_h == 2 && p.stride_w == 2 &&
         p.pad_h == 1 && p.pad_w == 1 && p.dilation_h == 1 && p.dilation_w == 1;
}

/// Stores the interleaved vectors of `width` columns of dx.
template <class T, class A>
CNNEXT_INLINE void store_interleaved(Vec<A> even, Vec<A> odd, T* dx, int64_t width) {
  constexpr int kWidth = Vec<A>::kWidth;
  interleave(even, odd);
  if (width >= 2 * kWidth) {
    even.store(dx);
    odd.store(dx + kWidth);
  } else {
    even.store(dx, static_cast<int>(min(kWidth, width)));
    if (width > kWidth) odd.store(dx + kWidth, static_cast<int>(width - kWidth));
  }
}

template <class T, class A>
void backward_input_stride2_range(const ConvParams& p, int64_t bands, const T* dy, const T* w, T* dx, int64_t begin,
                                  int64_t end) {
  using V = Vec<A>;
  const ZeroRow<T> zeros(p.Q);
  RowsAhead<T> dy_ahead(p.P, p.Q, p.y_strides.h), dx_ahead(p.H, p.W, p.x_strides.h);
  const auto dy_plane = [&](const BandIterator& it) { return dy + it.n * p.y_strides.n + it.channel * p.y_strides.c; };
  const auto dx_plane = [&](const BandIterator& it) { return dx + it.n * p.x_strides.n + it.channel * p.x_strides.c; };
  BandIterator it(begin, bands, p.C);
  for (int64_t index = begin; index < end; ++index, it.next()) {
    const BandIterator next = index + bands < end ? it.next_plane() : it;
    dy_ahead.select_plane(dy_plane(it), dy_plane(next));
    dx_ahead.select_plane(dx_plane(it), dx_plane(next));
    V weights[3][3];
    for (int tap = 0; tap < 9; ++tap) weights[tap / 3][tap % 3] = V(load_scalar<A>(w + it.channel * 9 + tap));
    for (int64_t i = it.band * kBandRows; i < min(p.P, (it.band + 1) * kBandRows); ++i) {
      const T* row = dy_plane(it) + i * p.y_strides.h;
      const T* below = i + 1 < p.P ? row + p.y_strides.h : zeros.data();
      T* out = dx_plane(it) + 2 * i * p.x_strides.h;
      const T *next_dy = dy_ahead.at(i), *next_dx = dx_ahead.at(2 * i);
      const bool two_rows = 2 * i + 1 < p.H;
      const auto strip = [&](int64_t j, const auto& load) {
        if (dx_ahead.worthwhile() && j % kLine<T> == 0) {
          dy_ahead.template prefetch<1, 1>(next_dy + j);
          dx_ahead.template prefetch<2, 2>(next_dx + 2 * j);
        }
        const V here = load(row + j, 0), right = load(row + j, 1), under = load(below + j, 0),
                beside = load(below + j, 1);
        store_interleaved(here * weights[1][1], fma(here, weights[1][2], right * weights[1][0]), out + 2 * j,
                          p.W - 2 * j);
        if (!two_rows) return;
        const V odd = fma(here, weights[2][2], right * weights[2][0]);
        store_interleaved(fma(here, weights[2][1], under * weights[0][1]),
                          fma(under, weights[0][2], fma(beside, weights[0][0], odd)), out + p.x_strides.h + 2 * j,
                          p.W - 2 * j);
      };
      int64_t j = 0;
      for (; j + V::kWidth < p.Q; j += V::kWidth) {
        strip(j, [](const T* from, int shift) { return V::load(from + shift); });
      }
      const int lanes = static_cast<int>(p.Q - j);
      strip(j, [&](const T* from, int shift) { return V::load(from + shift, lanes - shift); });
    }
  }
}

template <class T, class A>
void depthwise_backward_input_nchw_stride2(const ConvParams& p, const Parallel& parallel, const T* dy, const T* w,
                                           T* dx) {
  const int64_t bands = ceil_div(p.P, kBandRows);
  parallel(0, p.N * p.C * bands, depthwise_grain(min(kBandRows, p.P) * p.Q * 9),
           [&](int64_t begin, int64_t end) { backward_input_stride2_range<T, A>(p, bands, dy, w, dx, begin, end); });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
