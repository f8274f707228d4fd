// Depthwise convolution on the CPU: the entry points of one instruction set. Included by isa/depthwise_*.cpp only.
//
// One file a direction and layout holds the kernel; this one turns the run-time dtype and layout into a call.
#pragma once

#include "depthwise_backward_input_nchw.h"
#include "depthwise_backward_input_nhwc.h"
#include "depthwise_backward_weight_nchw.h"
#include "depthwise_backward_weight_nhwc.h"
#include "depthwise_forward_nchw.h"
#include "depthwise_forward_nhwc.h"

namespace cnnext::cpu::CNNEXT_ISA {

inline void depthwise_forward(const ConvParams& p, const Parallel& parallel, const void* x, const void* w,
                              const void* bias, void* y) {
  visit_dtype(p.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    const auto run = p.layout == Layout::kNHWC ? depthwise_forward_nhwc<T, A> : depthwise_forward_nchw<T, A>;
    run(p, parallel, static_cast<const T*>(x), static_cast<const T*>(w), static_cast<const T*>(bias),
        static_cast<T*>(y));
  });
}

inline void depthwise_backward_input(const ConvParams& p, const Parallel& parallel, const void* dy, const void* w,
                                     void* dx) {
  visit_dtype(p.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    const auto run =
        p.layout == Layout::kNHWC ? depthwise_backward_input_nhwc<T, A> : depthwise_backward_input_nchw<T, A>;
    run(p, parallel, static_cast<const T*>(dy), static_cast<const T*>(w), static_cast<T*>(dx));
  });
}

inline void depthwise_backward_weight(const ConvParams& p, const Parallel& parallel, const void* dy, const void* x,
                                      void* dw, void* dbias) {
  visit_dtype(p.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    const auto run =
        p.layout == Layout::kNHWC ? depthwise_backward_weight_nhwc<T, A> : depthwise_backward_weight_nchw<T, A>;
    run(p, parallel, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw), static_cast<T*>(dbias));
  });
}

// For separable.h, which is compiled apart.
template void correlate_rows(const CorrelateRows<float, float>&);
template void correlate_rows(const CorrelateRows<double, double>&);
template void correlate_rows(const CorrelateRows<Half, float>&);
template void correlate_rows(const CorrelateRows<BFloat16, float>&);

extern const OpKernels kDepthwiseKernels;
const OpKernels kDepthwiseKernels = {depthwise_forward, depthwise_backward_input, depthwise_backward_weight};

}  // namespace cnnext::cpu::CNNEXT_ISA
