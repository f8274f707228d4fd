// From a problem and its configuration to an instance of the implicit-GEMM kernels: tiles, arithmetic, axes of taps.
#pragma once

#include "implicit_gemm.cuh"
#include "kernels.h"
#include "launch_config.h"

namespace cnnext::cuda {

// The shapes of a block. The names say outputs by columns; the planner knows the same list (grouped_nhwc_plan.cpp).
using Tile128x128 = GemmTile<128, 128, 2, 4, 4>;
using Tile128x64 = GemmTile<128, 64, 4, 2, 4>;
using Tile64x64 = GemmTile<64, 64, 2, 2, 4>;

/// Calls f(Tile()) for the configuration's tile.
template <class F>
void dispatch_tile(const LaunchConfig& config, F f) {
  if (config.tile_h == 64) return f(Tile64x64());
  if (config.tile_w == 64) return f(Tile128x64());
  f(Tile128x128());
}

/// Calls f(T(), Math()).
template <class F>
void dispatch_math(const ConvParams& params, const LaunchConfig& config, F f) {
  if (params.dtype == DType::kFloat16) return f(__half(), TensorCoreMath<__half>());
  if (params.dtype == DType::kBFloat16) return f(__nv_bfloat16(), TensorCoreMath<__nv_bfloat16>());
  if (config.tf32) return f(float(), Tf32Math());
  f(float(), FmaMath());
}

/// Blocks that an SM should hold; more registers a thread than that leaves would not help.
template <class Math, class Tile>
constexpr int kMinBlocksOf = Tile::kThreads == 128 ? 2 : 1;

/// Outputs of a convolution, and the taps each of them meets.
inline TapAxis forward_axis(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t pad,
                            int64_t dilation) {
  TapAxis axis;
  axis.outputs = static_cast<int>(outputs), axis.taps = static_cast<int>(taps), axis.size = static_cast<int>(size);
  axis.step = static_cast<int>(stride), axis.first = static_cast<int>(-pad);
  axis.tap_step = static_cast<int>(dilation);
  return axis;
}

/// The positions of the input that are `remainder` modulo the stride (1 or 2), and the outputs that each of them went
/// into. Position remainder + i * stride met tap r as output i + (remainder + pad - r * dilation) / stride, for those r
/// with which the division leaves no rest: every second one, all or none.
inline TapAxis backward_axis(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                             int64_t remainder) {
  TapAxis axis;
  axis.outputs = static_cast<int>(ceil_div(size - remainder, stride));
  axis.size = static_cast<int>(outputs);
  axis.out_first = static_cast<int>(remainder), axis.out_step = static_cast<int>(stride);
  const auto meets = [&](int64_t r) { return (remainder + pad - r * dilation) % stride == 0; };
  int64_t first = 0;
  while (first < taps && !meets(first)) ++first;
  int64_t step = 1;
  while (first + step < taps && !meets(first + step)) ++step;
  axis.taps = static_cast<int>(ceil_div(taps - first, step));
  axis.filter_first = static_cast<int>(first), axis.filter_step = static_cast<int>(step);
  axis.first = static_cast<int>((remainder + pad - first * dilation) / stride);
  axis.tap_step = static_cast<int>(-step * dilation / stride);
  return axis;
}

template <class Tile>
dim3 gemm_grid(const GemmOperands& op, const GemmAxes& axes, int64_t groups) {
  int64_t pixels = 0;
  for (int i = 0; i < axes.classes_h; ++i) {
    for (int j = 0; j < axes.classes_w; ++j) {
      const int64_t of_class = static_cast<int64_t>(op.images) * axes.h[i].outputs * axes.w[j].outputs;
      if (of_class > pixels) pixels = of_class;
    }
  }
  const int64_t tiles = ceil_div(pixels, Tile::kM) * ceil_div(op.columns, Tile::kN);
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(groups),
              static_cast<unsigned>(axes.classes_h * axes.classes_w));
}

template <TileOrder kFilterOrder>
void launch_implicit_gemm(const ConvParams& params, const LaunchConfig& config, const GemmOperands& op,
                          const GemmAxes& axes, Stream stream) {
  dispatch_math(params, config, [&](auto element, auto math) {
    dispatch_tile(config, [&](auto tile) {
      using T = decltype(element);
      using Math = decltype(math);
      using Tile = decltype(tile);
      launch(implicit_gemm_kernel<T, Math, Tile, kFilterOrder, kMinBlocksOf<Math, Tile>>,
             gemm_grid<Tile>(op, axes, params.groups), dim3(Tile::kThreads), Tile::kSharedBytes, stream, op, axes);
    });
  });
}

}  // namespace cnnext::cuda
