// Grouped convolution (dense: one group; 1x1: one tap), forward, channels_last.
//
//   y[n, p, q, k] = activation(bias[k] + sum over r, s, c of x[n, p * stride - pad + r * dilation, ..., c] * w[k, r, s,
//   c])
//
// with c over the channels of k's group and x = 0 outside the image. One launch of the implicit GEMM
// (implicit_gemm.cuh): the taps of the filter are taken as they are.
#include "grouped_nhwc.cuh"

namespace cnnext::cuda {

void grouped_forward_nhwc(const ConvParams& p, const LaunchConfig& config, const void* x, const void* w,
                          const void* bias, void* y, float* sums, Stream stream) {
  GemmOperands op = forward_operands(p, x, w, bias, y);
  if (config.parts > 0) leave_parts(op, config.parts, sums, p.P, p.Q, channels_in_memory(p.K, config.padded_outputs));
  launch_implicit_gemm<TileOrder::kLines>(p, config, op, forward_axes(p), stream);
}

}  // namespace cnnext::cuda
