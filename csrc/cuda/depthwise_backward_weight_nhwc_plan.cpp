// Configurations of depthwise_backward_weight_nhwc: block = {lanes, R, groups}, a tile of tile_h x tile_w elements of
// dy of `planes` images, and as many stages as fit shared_bytes.
#include <algorithm>

#include "depthwise_backward_weight_nhwc.h"
#include "depthwise_backward_weight_parts.h"

namespace cnnext::cuda {
namespace {

using namespace backward_weight_nhwc;

/// Wider tiles gain little; taller filters leave no threads for groups.
constexpr int kMaxTileColumns = 28;
constexpr int kMaxFilterRows = 16;
/// Two blocks share a multiprocessor, so each has half of its shared memory; a stage has half of that. The more bytes
/// in a stage, the less weigh the halo between tiles and the work that every thread does once a tile.
constexpr int kBlocksForShared = 2;
constexpr int kMostImages = 8;
constexpr int kMostBiasBytes = 8 * 1024;

bool fits(const Problem& problem) {
  const ConvParams& p = problem.params;
  const bool runs = p.layout == Layout::kNHWC && p.dtype != DType::kFloat64 && p.K == p.C &&
                    (p.S == 3 || p.S == 5 || p.S == 7) && p.R <= kMaxFilterRows && p.dilation_w == 1 &&
                    p.stride_h == p.stride_w && (p.stride_w == 1 || p.stride_w == 2);
  if (!runs || problem.alignment < kAccessBytes) return false;
  const int vector = kAccessBytes / size_of(p.dtype);
  for (const int64_t step :
       {p.C, p.x_strides.n, p.x_strides.h, p.x_strides.w, p.y_strides.n, p.y_strides.h, p.y_strides.w}) {
    if (step % vector != 0) return false;
  }
  // Coordinates in an image, padding included, are 32-bit.
  return p.H + 2 * p.pad_h < (1 << 30) && p.W + 2 * p.pad_w < (1 << 30);
}

/// Vectors of a slab: at most `most`, few left over in the last slab, and rather many.
int choose_lanes(int64_t vectors, int most) {
  int best = static_cast<int>(std::min<int64_t>(vectors, most));
  for (int lanes = best; lanes >= std::max(1, most / 2); --lanes) {
    if (ceil_div(vectors, lanes) * lanes < ceil_div(vectors, best) * best) best = lanes;
  }
  return best;
}

/// The tallest tile of `columns` whose stage has at most `bytes`, then as many whole images as fit; tile_h = 0 if not
/// even one row fits.
Tile choose_tile(const ConvParams& params, int columns, int lanes, int64_t bytes) {
  const Tile one(params, 1, 1, columns);
  if (one.stage_bytes(lanes) > bytes) return Tile(params, 1, 0, columns);
  const int64_t row_bytes = Tile(params, 1, 2, columns).stage_bytes(lanes) - one.stage_bytes(lanes);
  const int64_t rows = 1 + (bytes - one.stage_bytes(lanes)) / row_bytes;
  const Tile tile(params, 1, static_cast<int>(even_piece(params.P, std::min(rows, params.P))), columns);
  if (tile.tile_h < params.P || tile.tile_w < params.Q) return tile;
  const int64_t images = std::min({bytes / tile.stage_bytes(lanes), int64_t{kMostImages}, params.N});
  return Tile(params, static_cast<int>(images), tile.tile_h, columns);
}

/// The fewest bytes of a tile's halo: lanes of 128 bytes for images that fit a stage whole, else of 64 bytes.
int most_lanes(const ConvParams& params, int64_t bytes) {
  const bool whole = params.Q <= kMaxTileColumns && params.P <= 64 &&
                     Tile(params, 1, static_cast<int>(params.P), static_cast<int>(params.Q)).stage_bytes(8) <= bytes;
  return whole ? 8 : 4;
}

/// The tile with fewer images, but at least half, where the longest of `parts` parts then has fewer.
Tile balance(const ConvParams& params, const Tile& tile, int64_t parts) {
  const auto longest = [&](int64_t images) { return ceil_div(ceil_div(params.N, images), parts) * images; };
  int best = tile.images;
  for (int images = tile.images - 1; 2 * images >= tile.images; --images) {
    if (longest(images) < longest(best)) best = images;
  }
  return Tile(params, best, tile.tile_h, tile.tile_w);
}

}  // namespace

void plan_depthwise_backward_weight_nhwc(const Problem& problem, Configs& configs) {
  if (!fits(problem)) return;
  const ConvParams& p = problem.params;
  const DeviceFacts& device = problem.device;
  const int vector = kAccessBytes / size_of(p.dtype);
  const int64_t vectors = p.C / vector;

  const int64_t shared = std::min<int64_t>(device.shared_bytes_per_block,
                                           device.shared_bytes_per_multiprocessor / kBlocksForShared - 1024);
  const int64_t most_stage_bytes = (shared - kMostBiasBytes) / 2;
  const int lanes = choose_lanes(vectors, most_lanes(p, most_stage_bytes));
  const Tile widest = choose_tile(p, static_cast<int>(even_piece(p.Q, kMaxTileColumns)), lanes, most_stage_bytes);
  if (widest.tile_h == 0) return;

  // Groups in whole rows of strips.
  const int most_rows =
      std::min(64, max_threads(static_cast<int>(p.S)) / (lanes * static_cast<int>(p.R))) / widest.strips;
  if (most_rows == 0) return;
  const int groups = widest.strips * static_cast<int>(even_piece(widest.tile_h, most_rows));
  const int threads = lanes * static_cast<int>(p.R) * groups;
  const int64_t sums_bytes = int64_t{groups} * p.R * p.S * lanes * vector * 4;
  const auto shared_bytes_for = [&](const Tile& tile) {
    const int64_t stage_bytes = tile.stage_bytes(lanes);
    const int64_t stages_bytes = stages(shared - kMostBiasBytes, stage_bytes) * stage_bytes;
    return std::max(stages_bytes, sums_bytes) + bias_bytes(p, threads);
  };
  // One round of blocks, each of which walks down an equal share of the tiles.
  const int64_t slabs = ceil_div(vectors, lanes);
  const auto parts_for = [&](const Tile& tile) {
    const int64_t blocks_a_multiprocessor = std::clamp<int64_t>(
        device.shared_bytes_per_multiprocessor / (shared_bytes_for(tile) + 1024), 1, kBlocksForShared);
    const int64_t wanted = std::max<int64_t>(1, device.multiprocessors * blocks_a_multiprocessor / slabs);
    return std::min({tile.count(p), affordable_parts(p), wanted});
  };
  const Tile tile = balance(p, widest, parts_for(widest));
  const int64_t shared_bytes = shared_bytes_for(tile);
  if (shared_bytes > device.shared_bytes_per_block) return;
  const int64_t tiles = tile.count(p);
  const int64_t parts = ceil_div(tiles, ceil_div(tiles, parts_for(tile)));
  if (slabs > kMaxGridX || parts > kMaxGridYZ || tiles >= (int64_t{1} << 31)) return;
  configs.push_back({.kernel = Kernel::kDepthwiseBackwardWeightNhwc,
                     .grid = {slabs, parts, 1},
                     .block = {lanes, static_cast<int>(p.R), groups},
                     .shared_bytes = static_cast<int>(shared_bytes),
                     .tile_h = tile.tile_h,
                     .tile_w = tile.tile_w,
                     .vector = vector,
                     .planes = tile.images,
                     .parts = static_cast<int>(parts)});
}

}  // namespace cnnext::cuda
