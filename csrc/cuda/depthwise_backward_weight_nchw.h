// What the planner and the launcher of depthwise_backward_weight_nchw both know of its tiles.
#pragma once

#include <algorithm>

#include "launch_config.h"

namespace cnnext::cuda::backward_weight_nchw {

constexpr int kMaxStages = 4;
/// Room for the part of a 16-byte access that lies ahead of a run of memory.
constexpr int kSkewBytes = 16;
/// Parts, at most, in which the block adds up the sums of its threads, for each tap of each plane; and the fewest
/// summands of a part.
constexpr int kMostSumParts = 8;
constexpr int kLeastSummands = 8;

/// Neighbouring outputs of a row that a thread owns; they divide the row. Neighbours share most of their elements of x.
/// Seven, for MobileNet's rows of 7, 14 and 28, only with a filter of 3 x 3 and stride 1: more taps, or columns of x
/// further apart, would not fit the registers, and longer rows would make bank conflicts. Else two, but not of 4-byte
/// elements: side by side they would make bank conflicts.
inline int thread_columns(const ConvParams& params) {
  if (params.S == 3 && params.stride_w == 1 && params.Q % 7 == 0 && params.Q <= 28) return 7;
  return size_of(params.dtype) == 2 && params.Q % 2 == 0 ? 2 : 1;
}

/// Threads of a block, by the filter's size: what it takes in registers.
constexpr int block_threads(int64_t S) { return S == 3 ? 256 : S == 5 ? 192 : 128; }
template <int kS>
constexpr int kBlockThreads = block_threads(kS);

/// Rows of a thread, where there are enough: it loads S - 1 rows of x before its first output.
constexpr int kMinRows = 7;

/// A block's tile: rows [p, p + tile_h) of `planes` planes of dy, of `images` images, and the rows of x under them.
/// Where tile_h is less than P, planes and images are one.
struct Tile {
  int planes, images, tile_h;
  int bands;         // tiles that a plane is cut into
  int strips;        // of columns, side by side: threads in a row
  int shares;        // of the tile's rows: threads in a column
  int image_shares;  // of the tile's images
  int64_t x_bytes;   // of one image, in shared memory
  int64_t dy_bytes;

  Tile(const ConvParams& params, int planes, int images, int tile_h)
      : planes(planes),
        images(images),
        tile_h(tile_h),
        bands(static_cast<int>(ceil_div(params.P, tile_h))),
        strips(
            static_cast<int>(std::min<int64_t>(ceil_div(params.Q, thread_columns(params)), block_threads(params.S)))),
        shares(std::clamp(std::min<int>(block_threads(params.S) / (strips * planes), tile_h / kMinRows), 1, tile_h)),
        image_shares(std::clamp(block_threads(params.S) / (strips * planes * shares), 1, images)),
        x_bytes(run_bytes(params, x_rows(params, tile_h) * params.W)),
        dy_bytes(run_bytes(params, tile_h * params.Q)) {}

  int64_t stage_bytes() const { return images * (x_bytes + dy_bytes); }

  /// Tiles of one group of planes.
  int64_t count(const ConvParams& params) const { return ceil_div(params.N, images) * bands; }

 private:
  /// Rows of x that are copied: those under the tile, and all of them where it is not a band.
  static int64_t x_rows(const ConvParams& params, int tile_h) {
    if (tile_h >= params.P) return params.H;
    return std::min((tile_h - 1) * params.stride_h + params.R, params.H);
  }
  int64_t run_bytes(const ConvParams& params, int64_t elements) const {
    return ceil_div(planes * elements * size_of(params.dtype), 16) * 16 + kSkewBytes;
  }
};

/// Whether neighbouring threads own neighbouring planes, rather than neighbouring columns: before a stride of 2 on
/// small planes of x, if these begin in 16 banks or more. Columns of several small planes would meet in the same banks.
inline bool planes_first(const ConvParams& params, const Tile& tile) {
  const int64_t plane_bytes = params.H * params.W * size_of(params.dtype);
  return params.stride_w == 2 && tile.strips < 16 && tile.planes >= 16 && plane_bytes % 16 != 0;
}

/// Parts in which the block adds up the sums of the threads of a plane: so many that each thread has at most one.
inline int sum_parts(const ConvParams& params, const Tile& tile) {
  const int summands = tile.strips * tile.shares * tile.image_shares;
  return std::clamp(std::min(block_threads(params.S) / tile.planes, summands / kLeastSummands), 1, kMostSumParts);
}

/// Shared memory where the block adds up its sums: those of every thread, then those of the parts.
inline int64_t sums_bytes(const ConvParams& params, const Tile& tile) {
  return (int64_t{block_threads(params.S)} + int64_t{tile.planes} * sum_parts(params, tile)) *
         (params.R * params.S + 1) * 4;
}

/// Tiles that fit shared memory at once: the one that is computed and those on their way.
inline int stages(int64_t shared_bytes, int64_t stage_bytes) {
  return static_cast<int>(std::min<int64_t>(shared_bytes / stage_bytes, kMaxStages));
}

}  // namespace cnnext::cuda::backward_weight_nchw
