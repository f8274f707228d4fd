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
                          const void* bias, void* y, Stream stream) {
  GemmOperands op{};
  op.source = x, op.filter = w, op.bias = bias, op.output = y;
  op.source_n = p.x_strides.n, op.source_h = p.x_strides.h, op.source_w = p.x_strides.w;
  op.output_n = p.y_strides.n, op.output_h = p.y_strides.h, op.output_w = p.y_strides.w;
  op.images = static_cast<int>(p.N);
  op.depth = static_cast<int>(p.channels_per_group()), op.columns = static_cast<int>(p.outputs_per_group());
  op.filter_w = op.depth, op.filter_h = p.S * op.filter_w;
  op.filter_row = p.R * op.filter_h;  // a column of the product is an output channel
  op.filter_group = op.columns * op.filter_row;
  op.activation = p.activation;

  GemmAxes axes;
  axes.h[0] = forward_axis(p.H, p.P, p.R, p.stride_h, p.pad_h, p.dilation_h);
  axes.w[0] = forward_axis(p.W, p.Q, p.S, p.stride_w, p.pad_w, p.dilation_w);
  launch_implicit_gemm<TileOrder::kLines>(p, config, op, axes, stream);
}

}  // namespace cnnext::cuda
