// The kernels of inference: convolutions with everything behind them that cnnext.fuse puts there, and the separable
// block.
//
//   fused_conv        y = activation(conv(x, w) + bias + residual)
//   fused_separable   separable.h
#pragma once

#include "grouped_run.h"
#include "separable.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Compiled with grouped.h.
extern template void run_pass(const Pass&, Layout, const Parallel&, const float*, const float*, const float*, float*);
extern template void run_pass(const Pass&, Layout, const Parallel&, const double*, const double*, const double*,
                              double*);
extern template void run_pass(const Pass&, Layout, const Parallel&, const Half*, const Half*, const float*, Half*);
extern template void run_pass(const Pass&, Layout, const Parallel&, const BFloat16*, const BFloat16*, const float*,
                              BFloat16*);
extern template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const float*, const float*,
                                    const float*, float*);
extern template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const double*, const double*,
                                    const double*, double*);
extern template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const Half*, const Half*,
                                    const float*, Half*);
extern template void run_pixel_rows(const Pass&, Layout, Layout, const Parallel&, const BFloat16*, const BFloat16*,
                                    const float*, BFloat16*);

/// y = activation(y + residual), for kernels that leave the residual out.
template <class T, class A>
void add_residual_rows(const ConvParams& p, const Parallel& parallel, const FusedOperands& operands) {
  constexpr int64_t kWidth = Vec<A>::kWidth;
  const bool planar = p.layout == Layout::kNCHW;
  const int64_t lines = planar ? p.N * p.K * p.P : p.N * p.P * p.Q, length = planar ? p.Q : p.K;
  parallel(0, lines, grain_for(8 * length), [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      // (n, k, p) of a line of pixels, or (n, p, q) of a line of channels.
      const int64_t last = line % (planar ? p.P : p.Q), rest = line / (planar ? p.P : p.Q);
      const int64_t middle = rest % (planar ? p.K : p.P), n = rest / (planar ? p.K : p.P);
      const auto offset = [&](const Strides4& s) {
        return n * s.n + (planar ? middle * s.c + last * s.h : middle * s.h + last * s.w);
      };
      T* y = static_cast<T*>(operands.y) + offset(p.y_strides);
      const T* residual = static_cast<const T*>(operands.residual) + offset(operands.residual_strides);
      for (int64_t i = 0; i < length; i += kWidth) {
        const int lanes = static_cast<int>(min(kWidth, length - i));
        activate(Vec<A>::load(y + i, lanes) + Vec<A>::load(residual + i, lanes), p.activation).store(y + i, lanes);
      }
    }
  });
}

inline void fused_conv(const ConvParams& params, const Parallel& parallel, const FusedOperands& operands) {
  visit_dtype(params.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    Pass pass = forward_pass(params, operands.packed_w, operands.residual, operands.residual_strides);
    if (operands.x_layout != params.layout) {
      // From planes to channels-last in one step. It has a few channels, so the input is copied in any case.
      run_pixel_rows<T, A>(pass, operands.x_layout, params.layout, parallel, static_cast<const T*>(operands.x),
                           static_cast<const T*>(operands.w),
                           bias_as_accumulators<A>(static_cast<const T*>(operands.bias), params.K),
                           static_cast<T*>(operands.y));
      return;
    }
    const bool add_behind = operands.residual != nullptr && !adds_residual<T, A>(pass, params.layout);
    if (add_behind) {
      pass.activation = Activation::kNone;
      pass.residual = nullptr;
    }
    run_pass<T, A>(pass, params.layout, parallel, static_cast<const T*>(operands.x), static_cast<const T*>(operands.w),
                   bias_as_accumulators<A>(static_cast<const T*>(operands.bias), params.K),
                   static_cast<T*>(operands.y));
    if (add_behind) add_residual_rows<T, A>(params, parallel, operands);
  });
}

inline void add_residual(const ConvParams& params, const Parallel& parallel, const FusedOperands& operands) {
  visit_dtype(params.dtype, [&](auto types) {
    add_residual_rows<typename decltype(types)::T, typename decltype(types)::A>(params, parallel, operands);
  });
}

inline void fused_separable(const SeparableParams& params, const Parallel& parallel, const FusedOperands& operands) {
  visit_dtype(params.depthwise.dtype, [&](auto types) {
    using T = typename decltype(types)::T;
    using A = typename decltype(types)::A;
    SeparablePass<T, A>(params, operands).run(parallel);
  });
}

extern const FusedKernels kFusedKernels;
const FusedKernels kFusedKernels = {fused_conv, add_residual, fused_separable};

}  // namespace cnnext::cpu::CNNEXT_ISA
