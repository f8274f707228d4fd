// Grouped convolution, gradient with respect to the input, channels_last.
//
//   dx[n, h, w, c] = sum over r, s, k of dy[n, p, q, k] * w[k, r, s, c],  p * stride - pad + r * dilation = h, q
//   likewise
//
// with k over the output channels of c's group. One launch of the implicit GEMM (implicit_gemm.cuh) with the roles of
// input and output exchanged. With stride 2 the positions of dx fall into two classes an axis, each reached by its own
// taps; blockIdx.z names the class. The filter is not transposed in memory: a tile of it has a line an output channel.
#include "grouped_nhwc.cuh"

namespace cnnext::cuda {

void grouped_backward_input_nhwc(const ConvParams& p, const LaunchConfig& config, const void* dy, const void* w,
                                 void* dx, Stream stream) {
  GemmOperands op{};
  op.source = dy, op.filter = w, op.output = dx;
  op.source_n = p.y_strides.n, op.source_h = p.y_strides.h, op.source_w = p.y_strides.w;
  op.output_n = p.x_strides.n, op.output_h = p.x_strides.h, op.output_w = p.x_strides.w;
  op.images = static_cast<int>(p.N);
  op.depth = static_cast<int>(p.outputs_per_group()), op.columns = static_cast<int>(p.channels_per_group());
  op.filter_w = op.columns, op.filter_h = p.S * op.filter_w;
  op.filter_row = p.R * op.filter_h;  // a reduced element of the product is an output channel
  op.filter_group = op.depth * op.filter_row;

  GemmAxes axes;
  axes.classes_h = static_cast<int>(p.stride_h), axes.classes_w = static_cast<int>(p.stride_w);
  for (int i = 0; i < axes.classes_h; ++i) {
    axes.h[i] = backward_axis(p.H, p.P, p.R, p.stride_h, p.pad_h, p.dilation_h, i);
  }
  for (int j = 0; j < axes.classes_w; ++j) {
    axes.w[j] = backward_axis(p.W, p.Q, p.S, p.stride_w, p.pad_w, p.dilation_w, j);
  }
  launch_implicit_gemm<TileOrder::kPanels>(p, config, op, axes, stream);
}

}  // namespace cnnext::cuda
