// From a problem and its configuration to an instance of the implicit-GEMM kernels: tiles, arithmetic, operands.
#pragma once

#include "grouped_axes.h"
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

/// Blocks of a tile that an SM is to hold at a time: those that its shared memory has room for.
template <class Tile>
constexpr int kBlocksOf = 227 * 1024 / (Tile::kSharedBytes + 1024);

inline GemmOperands forward_operands(const ConvParams& p, const void* x, const void* w, const void* bias, void* y) {
  GemmOperands op{};
  op.source = x, op.filter = w, op.bias = bias, op.output = y;
  op.source_n = p.x_strides.n, op.source_h = p.x_strides.h, op.source_w = p.x_strides.w;
  op.output_n = p.y_strides.n, op.output_h = p.y_strides.h, op.output_w = p.y_strides.w;
  op.images = static_cast<int>(p.N), op.parts = 1;
  op.depth = static_cast<int>(p.channels_per_group()), op.columns = static_cast<int>(p.outputs_per_group());
  op.filter_w = op.depth, op.filter_h = p.S * op.filter_w;
  op.filter_row = p.R * op.filter_h;  // a column of the product is an output channel
  op.filter_group = op.columns * op.filter_row;
  op.activation = p.activation;
  return op;
}

inline GemmOperands backward_operands(const ConvParams& p, const void* dy, const void* w, void* dx) {
  GemmOperands op{};
  op.source = dy, op.filter = w, op.output = dx;
  op.source_n = p.y_strides.n, op.source_h = p.y_strides.h, op.source_w = p.y_strides.w;
  op.output_n = p.x_strides.n, op.output_h = p.x_strides.h, op.output_w = p.x_strides.w;
  op.images = static_cast<int>(p.N), op.parts = 1;
  op.depth = static_cast<int>(p.outputs_per_group()), op.columns = static_cast<int>(p.channels_per_group());
  op.filter_w = op.columns, op.filter_h = p.S * op.filter_w;
  op.filter_row = p.R * op.filter_h;  // a reduced element of the product is an output channel
  op.filter_group = op.depth * op.filter_row;
  return op;
}

inline dim3 grid_of(const LaunchConfig& config) {
  return dim3(static_cast<unsigned>(config.grid[0]), static_cast<unsigned>(config.grid[1]),
              static_cast<unsigned>(config.grid[2]));
}

/// Lets the launch leave partial sums of an output of `rows` x `columns` pixels with `channels` channels, dense.
inline void leave_parts(GemmOperands& op, int parts, float* sums, int64_t rows, int64_t columns, int64_t channels) {
  op.sums = sums, op.parts = parts;
  op.output_w = channels, op.output_h = columns * channels, op.output_n = rows * op.output_h;
  op.part_elements = op.images * op.output_n;
}

template <TileOrder kFilterOrder>
void launch_implicit_gemm(const ConvParams& params, const LaunchConfig& config, const GemmOperands& op,
                          const GemmAxes& axes, Stream stream) {
  dispatch_math(params, config, [&](auto element, auto math) {
    dispatch_tile(config, [&](auto tile) {
      using T = decltype(element);
      using Math = decltype(math);
      using Tile = decltype(tile);
      launch(implicit_gemm_kernel<T, Math, Tile, kFilterOrder, kBlocksOf<Tile>>, grid_of(config), dim3(Tile::kThreads),
             config.shared_bytes, stream, op, axes);
    });
  });
}

}  // namespace cnnext::cuda
