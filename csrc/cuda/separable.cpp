// Runs a depthwise-separable block as its configuration says: the fused kernel, or the kernels of its two halves with
// the tensor between them in the workspace.
#include "separable.h"

namespace cnnext::cuda {
namespace {

Strides4 dense_strides(Layout layout, int64_t channels, int64_t height, int64_t width) {
  if (layout == Layout::kNHWC) return {height * width * channels, 1, width * channels, channels};
  return {channels * height * width, height * width, width, 1};
}

/// Bytes of the tensor between the halves, rounded up so that what follows is aligned.
int64_t middle_bytes(const ConvParams& p) { return ceil_div(p.N * p.K * p.P * p.Q * size_of(p.dtype), 16) * 16; }

}  // namespace

Problem depthwise_half(const SeparableProblem& problem) {
  Problem half;
  half.params = problem.depthwise;
  ConvParams& p = half.params;
  p.y_strides = dense_strides(p.layout, p.K, p.P, p.Q);
  half.alignment = problem.alignment, half.device = problem.device;
  return half;
}

Problem pointwise_half(const SeparableProblem& problem) {
  Problem half = depthwise_half(problem);
  ConvParams& p = half.params;
  p.C = p.K, p.H = p.P, p.W = p.Q, p.x_strides = p.y_strides;
  p.K = problem.outputs, p.R = p.S = 1, p.groups = 1, p.y_strides = problem.y_strides;
  p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1, p.pad_h = p.pad_w = 0;
  p.activation = problem.activation;
  half.allow_tf32 = problem.allow_tf32;
  return half;
}

int64_t separable_workspace_bytes(const SeparableProblem& problem, const SeparableConfig& config) {
  if (config.fused) return 0;
  return middle_bytes(problem.depthwise) + workspace_bytes(pointwise_half(problem), config.pointwise);
}

void separable(const SeparableProblem& problem, const SeparableConfig& config, const SeparableOperands& operands,
               void* workspace, Stream stream) {
  if (config.fused) return separable_nhwc(problem, config.kernel, operands, stream);
  depthwise_forward(depthwise_half(problem).params, config.kernel, operands.x, operands.depthwise_w,
                    operands.depthwise_bias, workspace, stream);
  ConvParams pointwise = pointwise_half(problem).params;
  if (operands.residual != nullptr) pointwise.activation = Activation::kNone;
  grouped_forward(pointwise, config.pointwise, false, workspace, operands.w, operands.bias, operands.y,
                  static_cast<unsigned char*>(workspace) + middle_bytes(problem.depthwise), stream);
  if (operands.residual == nullptr) return;
  pointwise.activation = problem.activation;
  add_residual(pointwise, operands.residual, operands.y, stream);
}

}  // namespace cnnext::cuda
