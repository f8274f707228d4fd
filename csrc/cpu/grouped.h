// Grouped convolution (any number of groups, one included; any filter, stride, padding and dilation):
//
//   y(n, k, p, q) = activation(bias(k) + sum over c, r, s of w(k, c, r, s) *
//                         x(n, group * C / groups + c, p * stride_h + r * dilation_h - pad_h, q * stride_w + ...))
//
// and its gradients. The forward pass and the input gradient are sums over taps (grouped_pass.h), run by one of
//   grouped_few_pixels.h      a matrix times a few vectors
//   grouped_narrow.h          groups of 1, 2, 4 or 8 channels: several groups share a vector
//   grouped_pixel_rows.h      a matrix product whose rows are pixels
//   grouped_pixel_columns.h   a matrix product whose columns are pixels
// and grouped_backward_weight.h has the gradients of filter and bias. The products end in the register tile of
// gemm_tile.h.
#pragma once

#include "grouped_backward_weight.h"
#include "grouped_few_pixels.h"
#include "grouped_narrow.h"
#include "grouped_pixel_columns.h"
#include "grouped_pixel_rows.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// With fewer pixels than this, turning the filter for grouped_pixel_rows.h costs more than it gains: channels-last,
/// and channels-first with several taps.
constexpr int64_t kFewPixels = 12, kFewPixelsPlanar = 100;

template <class T, class A>
void run_pass(const Pass& pass, Layout layout, const Parallel& parallel, const T* in, const T* filter, const A* bias,
              T* out) {
  // Channels-first with one tap already has its columns in place; with more, gathering costs more than turning.
  const bool columns =
      layout == Layout::kNHWC ? pass.pixels() < kFewPixels : pass.num_taps <= 1 || pass.pixels() < kFewPixelsPlanar;
  if (FewPixelsPass<T, A>::takes(pass)) {
    FewPixelsPass<T, A>(pass, filter, bias, out).run(parallel, in);
  } else if (NarrowPass<T, A>::takes(pass) && pass.pixels() >= kFewPixels) {
    run_narrow<T, A>(pass, layout, parallel, in, filter, bias, out);
  } else if (columns) {
    run_pixel_columns<T, A>(pass, parallel, in, filter, bias, out);
  } else {
    run_pixel_rows<T, A>(pass, layout, parallel, in, filter, bias, out);
  }
}

inline void grouped_forward(const ConvParams& p, const Parallel& parallel, const void* x, const void* w,
                            const void* bias, void* y) {
  visit_dtype(p.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    const A* bias_values = bias_as_accumulators<A>(static_cast<const T*>(bias), p.K);
    run_pass<T, A>(forward_pass(p), p.layout, parallel, static_cast<const T*>(x), static_cast<const T*>(w), bias_values,
                   static_cast<T*>(y));
  });
}

inline void grouped_backward_input(const ConvParams& p, const Parallel& parallel, const void* dy, const void* w,
                                   void* dx) {
  visit_dtype(p.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    for_each_backward_input_pass(p, [&](const Pass& pass, int64_t offset) {
      run_pass<T, A>(pass, p.layout, parallel, static_cast<const T*>(dy), static_cast<const T*>(w), nullptr,
                     static_cast<T*>(dx) + offset);
    });
  });
}

inline void grouped_backward_weight(const ConvParams& p, const Parallel& parallel, const void* dy, const void* x,
                                    void* dw, void* dbias) {
  visit_dtype(p.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    run_backward_weight<T, A>(p, parallel, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw),
                              static_cast<T*>(dbias));
  });
}

extern const OpKernels kGroupedKernels;
const OpKernels kGroupedKernels = {grouped_forward, grouped_backward_input, grouped_backward_weight};

}  // namespace cnnext::cpu::CNNEXT_ISA
