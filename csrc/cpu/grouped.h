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
#include "grouped_run.h"

namespace cnnext::cpu::CNNEXT_ISA {

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

// For fused.h, which is compiled apart.
template void run_pass(const Pass&, Layout, const Parallel&, const float*, const float*, const float*, float*);
template void run_pass(const Pass&, Layout, const Parallel&, const double*, const double*, const double*, double*);
template void run_pass(const Pass&, Layout, const Parallel&, const Half*, const Half*, const float*, Half*);
template void run_pass(const Pass&, Layout, const Parallel&, const BFloat16*, const BFloat16*, const float*, BFloat16*);
template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const float*, const float*, const float*,
                             float*);
template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const double*, const double*, const double*,
                             double*);
template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const Half*, const Half*, const float*,
                             Half*);
template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const BFloat16*, const BFloat16*,
                             const float*, BFloat16*);
template void gemm_tile(int, const GemmTile<float>&);
template void gemm_tile(int, const GemmTile<double>&);

extern const OpKernels kGroupedKernels;
const OpKernels kGroupedKernels = {grouped_forward, grouped_backward_input, grouped_backward_weight};

}  // namespace cnnext::cpu::CNNEXT_ISA
