// Grouped convolution, gradient with respect to the filter and the bias, channels_last: the first of two stages.
//
//   dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] * x[n, p * stride - pad + r * dilation, ..., c]
//   dbias[k]       = sum over n, p, q of dy[n, p, q, k]
//
// One launch of the implicit GEMM over pixels (implicit_gemm_weight.cuh), which leaves `parts` partial sums.
#include "grouped_nhwc.cuh"
#include "implicit_gemm_weight.cuh"

namespace cnnext::cuda {

void grouped_backward_weight_nhwc(const ConvParams& p, const LaunchConfig& config, const void* dy, const void* x,
                                  bool with_bias, float* workspace, Stream stream) {
  WeightGemmOperands op{};
  op.x = x, op.dy = dy;
  op.x_n = p.x_strides.n, op.x_h = p.x_strides.h, op.x_w = p.x_strides.w;
  op.dy_n = p.y_strides.n, op.dy_h = p.y_strides.h, op.dy_w = p.y_strides.w;
  op.images = static_cast<int>(p.N), op.groups = static_cast<int>(p.groups), op.parts = config.parts;
  op.rows = static_cast<int>(p.outputs_per_group()), op.columns = static_cast<int>(p.channels_per_group());
  op.h = forward_axis(p.H, p.P, p.R, p.stride_h, p.pad_h, p.dilation_h);
  op.w = forward_axis(p.W, p.Q, p.S, p.stride_w, p.pad_w, p.dilation_w);
  op.sums = workspace;
  op.bias_sums = with_bias ? workspace + config.parts * p.K * p.channels_per_group() * p.R * p.S : nullptr;

  dispatch_math(p, config, [&](auto element, auto math) {
    dispatch_tile(config, [&](auto tile) {
      using T = decltype(element);
      using Math = decltype(math);
      using Tile = decltype(tile);
      launch(implicit_gemm_weight_kernel<T, Math, Tile, kBlocksOf<Tile>>, grid_of(config), dim3(Tile::kThreads),
             config.shared_bytes, stream, op);
    });
  });
}

}  // namespace cnnext::cuda
