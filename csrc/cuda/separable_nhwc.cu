// The fused depthwise-separable block, channels_last (separable_nhwc.cuh): from a configuration to an instance.
#include "separable_nhwc.cuh"

#include "grouped_nhwc.cuh"

namespace cnnext::cuda {
namespace {

// The shapes of a block, kSeparableTiles of separable.h.
using SeparableTile128x256 = GemmTile<128, 256, 2, 4, 2>;
using SeparableTile64x128 = GemmTile<64, 128, 2, 4, 2>;
using SeparableTile64x64 = GemmTile<64, 64, 2, 2, 2>;

/// Calls f(Tile()) for the configuration's tile. Products on the FMA pipes have the smallest only: they take so long
/// that a second tile of columns costs little.
template <class Math, class F>
void dispatch_separable_tile(const LaunchConfig& config, F f) {
  if constexpr (!std::is_same_v<Math, FmaMath>) {
    if (config.columns == 256) return f(SeparableTile128x256());
    if (config.columns == 128) return f(SeparableTile64x128());
  }
  f(SeparableTile64x64());
}

/// Calls f(constant filter, constant stride).
template <class F>
void dispatch_taps(const ConvParams& params, F f) {
  const auto with_stride = [&](auto filter) {
    if (params.stride_h == 1) return f(filter, std::integral_constant<int, 1>());
    f(filter, std::integral_constant<int, 2>());
  };
  if (params.R == 3) return with_stride(std::integral_constant<int, 3>());
  with_stride(std::integral_constant<int, 5>());
}

int log2_of(int value) {
  int result = 0;
  while (1 << result < value) ++result;
  return result;
}

SeparableShape make_shape(const ConvParams& p, const LaunchConfig& config, const SeparableOperands& operands) {
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  SeparableShape shape{};
  shape.x = operands.x, shape.w = operands.depthwise_w, shape.bias = operands.depthwise_bias;
  const int element = size_of(p.dtype);
  shape.x_n = p.x_strides.n;
  shape.x_h = narrow(p.x_strides.h * element), shape.x_w = narrow(p.x_strides.w * element);
  shape.H = narrow(p.H), shape.W = narrow(p.W), shape.P = narrow(p.P), shape.Q = narrow(p.Q);
  shape.pad_h = narrow(p.pad_h), shape.pad_w = narrow(p.pad_w);
  shape.tile_h = config.tile_h, shape.tile_w = config.tile_w, shape.tile_h_log2 = log2_of(config.tile_h);
  shape.tiles_h = narrow(ceil_div(p.P, config.tile_h)), shape.tiles_w = narrow(ceil_div(p.Q, config.tile_w));
  const SeparableLayout layout = separable_layout(config.tile_h, config.tile_w, config.columns, narrow(p.R),
                                                  narrow(p.stride_h), p.C, size_of(p.dtype));
  shape.layout = layout;
  const int pixels = config.block[0] / kLinePieces;
  shape.step_h = pixels / layout.halo_w, shape.step_w = pixels % layout.halo_w;
  shape.step_x = shape.step_h * shape.x_h + shape.step_w * shape.x_w;
  shape.step_halo = shape.step_h * layout.row_pitch + shape.step_w * kLineBytes;
  shape.wrap_x = shape.x_h - layout.halo_w * shape.x_w;
  shape.wrap_halo = layout.row_pitch - layout.halo_w * kLineBytes;
  shape.halo_w_reciprocal = (1 << 16) / layout.halo_w + 1;
  shape.activation = p.activation;
  return shape;
}

}  // namespace

void separable_nhwc(const SeparableProblem& problem, const LaunchConfig& config, const SeparableOperands& operands,
                    Stream stream) {
  const ConvParams pointwise = pointwise_half(problem).params;
  GemmOperands op = forward_operands(pointwise, nullptr, operands.w, operands.bias, operands.y);
  op.residual = operands.residual;
  const SeparableShape shape = make_shape(problem.depthwise, config, operands);
  dispatch_math(problem.depthwise, config, [&](auto element, auto math) {
    using T = decltype(element);
    using Math = decltype(math);
    dispatch_separable_tile<Math>(config, [&](auto tile) {
      dispatch_taps(problem.depthwise, [&](auto filter, auto stride) {
        using Tile = decltype(tile);
        // TF32 would spill with the registers of two blocks.
        constexpr bool kTwo = Tile::kM == 64 && !std::is_same_v<Math, Tf32Math>;
        constexpr int kMinBlocks = Tile::kThreads == 128 ? 3 : kTwo ? 2 : 1;
        launch(separable_nhwc_kernel<T, Math, Tile, filter(), stride(), kMinBlocks>,
               dim3(static_cast<unsigned>(config.grid[0])), dim3(Tile::kThreads), config.shared_bytes, stream, shape,
               op);
      });
    });
  });
}

}  // namespace cnnext::cuda
