// What the planner and the launcher of depthwise_backward_weight_nhwc both know of its tiles.
#pragma once

#include "launch_config.h"

namespace cnnext::cuda::backward_weight_nhwc {

constexpr int kAccessBytes = 16;
constexpr int kMaxStages = 4;

/// Outputs of a row that a thread walks along at most; a tile's row is cut into equal strips.
constexpr int kMaxStrip = 14;

/// The most threads of a block, by the filter's width: what it takes in registers.
constexpr int max_threads(int S) { return S == 3 ? 320 : S == 5 ? 256 : 192; }

/// A block's tile: tile_h x tile_w elements of dy and the elements of x under them, `lanes` vectors of channels each.
struct Tile {
  int tile_h, tile_w;
  int x_rows, x_columns;
  int strip;   // elements of dy in a strip
  int strips;  // strips in a row

  Tile(const ConvParams& params, int tile_h, int tile_w)
      : tile_h(tile_h),
        tile_w(tile_w),
        x_rows(static_cast<int>((tile_h - 1) * params.stride_h + (params.R - 1) * params.dilation_h + 1)),
        x_columns(static_cast<int>((tile_w - 1) * params.stride_w + params.S)),
        strip(static_cast<int>(ceil_div(tile_w, ceil_div(tile_w, kMaxStrip)))),
        strips(static_cast<int>(ceil_div(tile_w, strip))) {}

  int64_t x_bytes(int lanes) const { return int64_t{x_rows} * x_columns * lanes * kAccessBytes; }
  int64_t dy_bytes(int lanes) const { return int64_t{tile_h} * tile_w * lanes * kAccessBytes; }
  int64_t stage_bytes(int lanes) const { return x_bytes(lanes) + dy_bytes(lanes); }
};

/// Tiles that fit shared memory at once: the one that is computed and those on their way.
inline int stages(int64_t shared_bytes, int64_t stage_bytes) {
  const int64_t fit = shared_bytes / stage_bytes;
  return static_cast<int>(fit < kMaxStages ? fit : kMaxStages);
}

}  // namespace cnnext::cuda::backward_weight_nhwc
