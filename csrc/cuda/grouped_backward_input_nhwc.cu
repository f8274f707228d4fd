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
                                 void* dx, float* sums, Stream stream) {
  GemmOperands op = backward_operands(p, dy, w, dx);
  if (config.parts > 0) leave_parts(op, config.parts, sums, p.H, p.W, p.C);
  launch_implicit_gemm<TileOrder::kPanels>(p, config, op, backward_axes(p), stream);
}

}  // namespace cnnext::cuda
