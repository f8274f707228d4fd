// What the planner and the launcher of depthwise_backward_weight_nhwc both know of its tiles.
#pragma once

#include "launch_config.h"

namespace cnnext::cuda::backward_weight_nhwc {

constexpr int kAccessBytes = 16;
constexpr int kMaxStages = 4;

/// Outputs of a row that a thread walks along at most; a tile's row is cut into equal strips.
constexpr int kMaxStrip = 14;

/// The most threads of a block, by the filter's width: what it takes in registers.
constexpr int max_threads(int S) { return S == 3 ? 256 : 192; }

/// A block's tile: tile_h x tile_w elements of dy of some images and the elements of x under them, `lanes` vectors of
/// channels each. More than one image only where a tile has the whole of one.
struct Tile {
  int images, tile_h, tile_w;
  int x_rows, x_columns;
  int strip;   // elements of dy in a strip
  int strips;  // strips in a row

  Tile(const ConvParams& params, int images, int tile_h, int tile_w)
      : images(images),
        tile_h(tile_h),
        tile_w(tile_w),
        x_rows(static_cast<int>((tile_h - 1) * params.stride_h + (params.R - 1) * params.dilation_h + 1)),
        x_columns(static_cast<int>((tile_w - 1) * params.stride_w + params.S)),
        strip(static_cast<int>(ceil_div(tile_w, ceil_div(tile_w, kMaxStrip)))),
        strips(static_cast<int>(ceil_div(tile_w, strip))) {}

  int64_t x_bytes(int lanes) const { return int64_t{images} * x_rows * x_columns * lanes * kAccessBytes; }
  int64_t dy_bytes(int lanes) const { return int64_t{images} * tile_h * tile_w * lanes * kAccessBytes; }
  int64_t stage_bytes(int lanes) const { return x_bytes(lanes) + dy_bytes(lanes); }

  /// Tiles of the whole problem.
  int64_t count(const ConvParams& params) const {
    return ceil_div(params.N, images) * ceil_div(params.P, tile_h) * ceil_div(params.Q, tile_w);
  }
};

/// Shared memory for the sums of dy, float32, a vector a thread; it follows the stages.
inline int bias_bytes(const ConvParams& params, int threads) {
  return threads * kAccessBytes / size_of(params.dtype) * static_cast<int>(sizeof(float));
}

/// Tiles that fit shared memory at once: the one that is computed and those on their way.
inline int stages(int64_t shared_bytes, int64_t stage_bytes) {
  const int64_t fit = shared_bytes / stage_bytes;
  return static_cast<int>(fit < kMaxStages ? fit : kMaxStages);
}

}  // namespace cnnext::cuda::backward_weight_nhwc
