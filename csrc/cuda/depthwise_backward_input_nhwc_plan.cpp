// Configurations of the channels_last depthwise input gradient.
#include "depthwise_strip_nhwc.h"

namespace cnnext::cuda {

ConvParams gradient_as_correlation(const ConvParams& params) {
  ConvParams gradient = params;
  gradient.H = params.P, gradient.W = params.Q, gradient.x_strides = params.y_strides;
  gradient.P = params.H, gradient.Q = params.W, gradient.y_strides = params.x_strides;
  gradient.pad_h = params.dilation_h * (params.R - 1) - params.pad_h;  // may be negative
  gradient.pad_w = params.dilation_w * (params.S - 1) - params.pad_w;
  gradient.activation = Activation::kNone;
  return gradient;
}

StripAxis pairs_axis(int64_t size, int64_t pad) { return {1, (size - 1 + pad) / 2 - pad / 2 + 1}; }

void plan_depthwise_backward_input_nhwc(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  constexpr Kernel kKernel = Kernel::kDepthwiseBackwardInputNhwc;
  if (p.stride_h == 1) {
    Problem correlation = problem;
    correlation.params = gradient_as_correlation(p);
    return plan_correlation_nhwc(correlation, kKernel, configs);
  }
  if (!is_strip_problem(p)) return;
  const int filter = static_cast<int>(p.R);
  Strip strip = transposed_strip(filter, false);
  if (!fits_vector(problem, strip.vector)) strip = transposed_strip(filter, true);
  append_strip_configs({.kernel = kKernel,
                        .strip = strip,
                        .images = p.N,
                        .channels = p.C,
                        .rows = pairs_axis(p.H, p.pad_h),
                        .columns = pairs_axis(p.W, p.pad_w),
                        .rows_per_output = 1,
                        .extra_rows = (filter - 1) / 2},
                       problem.device, configs);
}

}  // namespace cnnext::cuda
