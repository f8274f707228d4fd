// What the forward pass and the input gradient have in common: each is a set of "passes", a pass being
//
//   out(n, m, p, q) = activation(bias(m) + sum over channels c and taps t of
//                                filter(m, c, t) * in(n, c, p * step_h + t.dh, q * step_w + t.dw))
//
// for every group, with `in` zero outside its image. The forward convolution is one pass with all R x S taps. The input
// gradient is one pass for each residue (h mod stride_h, w mod stride_w) of dx, with the taps that can reach that
// residue: a dense sum without divisibility tests, each element of dx written once, nothing to reduce.
#pragma once

#include "gemm_scratch.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Where one filter tap reads its input, and its place r * S + s in the filter.
struct Tap {
  int64_t dh, dw;
  int64_t index;
};

struct Pass {
  int64_t N, groups;
  int64_t in_channels, out_channels;  // of one group
  int64_t in_h, in_w;
  int64_t out_h, out_w;
  int64_t step_h, step_w;
  Strides4 in_strides, out_strides;
  const Tap* taps;
  int64_t num_taps;
  // filter(group, m, c, t) is at group * filter_group + m * filter_m + c * filter_c + taps[t].index.
  int64_t filter_group, filter_m, filter_c;
  bool rows_contiguous;  // filter(g, m, :, :) is one contiguous run, ordered (c, t)
  bool all_taps;         // every tap of the filter takes part
  Activation activation;
  // What inference adds to a forward pass; only grouped_pixel_rows.h looks at it.
  const void* packed_filter = nullptr;  // the filter in the order of packed_filter.h, or null
  const void* residual = nullptr;       // added before the activation, with the output's type and layout, or null
  Strides4 residual_strides{};

  int64_t depth() const { return in_channels * num_taps; }
  int64_t pixels() const { return N * out_h * out_w; }
};

/// Multiply-adds below which a call is not worth waking other threads for (a few microseconds).
constexpr int64_t kInlineWork = 150000;

/// The grain for tasks of `work` multiply-adds.
inline int64_t grain_for(int64_t work) { return max(1, kInlineWork / max(1, work)); }

/// Images of a 1x1 pass that lie in memory without gaps become one row, so that tiles need not respect image rows.
inline void flatten(Pass& pass) {
  const bool pointwise = pass.num_taps == 1 && pass.taps[0].dh == 0 && pass.taps[0].dw == 0 && pass.step_h == 1 &&
                         pass.step_w == 1 && pass.in_h == pass.out_h && pass.in_w == pass.out_w;
  if (!pointwise) return;
  Strides4 &in = pass.in_strides, &out = pass.out_strides;
  const Strides4& residual = pass.residual ? pass.residual_strides : out;
  if (pass.in_h > 1) {
    if (in.h != pass.in_w * in.w || out.h != pass.out_w * out.w || residual.h != pass.out_w * residual.w) return;
    pass.in_w = pass.out_w = pass.in_w * pass.in_h;
    pass.in_h = pass.out_h = 1;
  }
  if (pass.N > 1 && in.n == pass.in_w * in.w && out.n == pass.out_w * out.w && residual.n == pass.out_w * residual.w) {
    pass.in_w = pass.out_w = pass.in_w * pass.N;
    pass.N = 1;
  }
}

inline Pass forward_pass(const ConvParams& p, const void* packed_filter = nullptr, const void* residual = nullptr,
                         const Strides4& residual_strides = {}) {
  const int64_t cg = p.channels_per_group(), kg = p.outputs_per_group(), rs = p.R * p.S;
  Tap* taps = scratch<Tap>(Slot::kTaps, rs);
  for (int64_t r = 0; r < p.R; ++r) {
    for (int64_t s = 0; s < p.S; ++s) {
      taps[r * p.S + s] = {r * p.dilation_h - p.pad_h, s * p.dilation_w - p.pad_w, r * p.S + s};
    }
  }
  Pass pass{p.N,         p.groups,    cg,   kg, p.H,          p.W,     p.P, p.Q,  p.stride_h, p.stride_w,
            p.x_strides, p.y_strides, taps, rs, kg * cg * rs, cg * rs, rs,  true, true,       p.activation};
  pass.packed_filter = packed_filter;
  pass.residual = residual;
  pass.residual_strides = residual_strides;
  flatten(pass);
  return pass;
}

/// Calls f(pass, offset of the pass's first element in dx) for each residue class of dx.
template <class F>
inline void for_each_backward_input_pass(const ConvParams& p, const F& f) {
  const int64_t cg = p.channels_per_group(), kg = p.outputs_per_group(), rs = p.R * p.S;
  Tap* taps = scratch<Tap>(Slot::kTaps, rs);
  for (int64_t h0 = 0; h0 < min(p.stride_h, p.H); ++h0) {
    for (int64_t w0 = 0; w0 < min(p.stride_w, p.W); ++w0) {
      int64_t count = 0;
      // Backwards, so that taps which are neighbours in this list read neighbouring pixels from left to right.
      for (int64_t r = p.R - 1; r >= 0; --r) {
        const int64_t dh = h0 + p.pad_h - r * p.dilation_h;
        if (dh % p.stride_h != 0) continue;
        for (int64_t s = p.S - 1; s >= 0; --s) {
          const int64_t dw = w0 + p.pad_w - s * p.dilation_w;
          if (dw % p.stride_w == 0) taps[count++] = {dh / p.stride_h, dw / p.stride_w, r * p.S + s};
        }
      }
      const Strides4& x = p.x_strides;
      Pass pass{p.N,
                p.groups,
                kg,
                cg,
                p.P,
                p.Q,
                ceil_div(p.H - h0, p.stride_h),
                ceil_div(p.W - w0, p.stride_w),
                1,
                1,
                p.y_strides,
                {x.n, x.c, x.h * p.stride_h, x.w * p.stride_w},
                taps,
                count,
                kg * cg * rs,
                rs,
                cg * rs,
                false,
                count == rs,
                Activation::kNone};
      flatten(pass);
      f(pass, h0 * x.h + w0 * x.w);
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
