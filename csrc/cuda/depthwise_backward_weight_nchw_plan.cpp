// Configurations of depthwise_backward_weight_nchw: tile_h rows of `planes` (n, c) planes a tile, an equal number from
// each of its images, and as many stages as fit shared_bytes.
#include <algorithm>

#include "depthwise_backward_weight_nchw.h"
#include "depthwise_backward_weight_parts.h"

namespace cnnext::cuda {
namespace {

using namespace backward_weight_nchw;

/// Two blocks share a multiprocessor, so each has half of its shared memory; a stage has half of that. The more bytes
/// in a stage, the less weigh the rows that neighbouring bands share and the work that every thread does once a tile.
constexpr int kBlocksForShared = 2;
constexpr int kMostImages = 16;

bool fits(const ConvParams& p) {
  const bool runs = p.layout == Layout::kNCHW && p.dtype != DType::kFloat64 && p.K == p.C && p.R == p.S &&
                    (p.S == 3 || p.S == 5 || p.S == 7) && p.dilation_h == 1 && p.dilation_w == 1 &&
                    p.stride_h == p.stride_w && (p.stride_w == 1 || p.stride_w == 2);
  // Offsets in a tile, which has at most some 100 KB, and coordinates in an image, padding included, are 32-bit.
  return runs && p.H + 2 * p.pad_h < (1 << 30) && p.W + 2 * p.pad_w < (1 << 30) && p.N < (1 << 30);
}

/// The tile whose stage has at most `bytes`: a band of rows where one plane does not fit; else planes until the threads
/// have work, but so few that there are `blocks` blocks; then images. images = 0 if nothing fits.
Tile choose_tile(const ConvParams& p, int64_t bytes, int64_t blocks) {
  const auto fits_stage = [&](int64_t planes, int64_t images, int64_t rows) {
    return Tile(p, static_cast<int>(planes), static_cast<int>(images), static_cast<int>(rows)).stage_bytes() <= bytes;
  };
  if (!fits_stage(1, 1, p.P)) {
    int64_t rows = p.P;
    while (rows > 0 && !fits_stage(1, 1, rows)) rows = rows > 16 ? rows * 7 / 8 : rows - 1;
    if (rows == 0) return Tile(p, 1, 0, 1);
    return Tile(p, 1, 1, static_cast<int>(even_piece(p.P, rows)));
  }
  const Tile one(p, 1, 1, static_cast<int>(p.P));
  int64_t planes = std::clamp<int64_t>(block_threads(p.S) / (one.strips * one.shares), 1, p.K);
  while (planes > 1 && !fits_stage(planes, 1, p.P)) --planes;
  // Whole accesses from one group of planes to the next.
  const int64_t vector = 16 / size_of(p.dtype);
  const int64_t parts = std::min(affordable_parts(p), p.N);
  while (planes >= 2 * vector && ceil_div(p.K, planes) * parts < blocks) planes /= 2;
  if (planes >= vector && planes < p.K) planes -= planes % vector;
  planes = even_piece(p.K, planes);
  int64_t images = std::min<int64_t>(kMostImages, ceil_div(p.N, std::min(parts, ceil_div(blocks * planes, p.K))));
  while (images > 1 && !fits_stage(planes, images, p.P)) --images;
  return Tile(p, static_cast<int>(planes), static_cast<int>(images), static_cast<int>(p.P));
}

}  // namespace

void plan_depthwise_backward_weight_nchw(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  const DeviceFacts& device = problem.device;
  if (!fits(p)) return;
  const int64_t shared = std::min<int64_t>(device.shared_bytes_per_block,
                                           device.shared_bytes_per_multiprocessor / kBlocksForShared - 1024);
  const int64_t blocks = int64_t{device.multiprocessors} * kBlocksForShared;
  const Tile tile = choose_tile(p, shared / 2, blocks);
  if (tile.images == 0) return;
  const int64_t stages_bytes = stages(shared, tile.stage_bytes()) * tile.stage_bytes();
  const int64_t shared_bytes = std::max(stages_bytes, sums_bytes(p, tile));
  if (shared_bytes > device.shared_bytes_per_block) return;

  // One round of blocks, each of which walks down an equal share of its group's tiles.
  const int64_t groups = ceil_div(p.K, tile.planes);
  const int64_t tiles = tile.count(p);
  const int64_t blocks_a_multiprocessor =
      std::clamp<int64_t>(device.shared_bytes_per_multiprocessor / (shared_bytes + 1024), 1, kBlocksForShared);
  const int64_t wanted = std::max<int64_t>(1, device.multiprocessors * blocks_a_multiprocessor / groups);
  int64_t parts = std::min({tiles, affordable_parts(p), wanted});
  parts = ceil_div(tiles, ceil_div(tiles, parts));
  if (groups * parts > kMaxGridX || tiles >= (int64_t{1} << 31)) return;
  configs.push_back({.kernel = Kernel::kDepthwiseBackwardWeightNchw,
                     .grid = {groups * parts, 1, 1},
                     .block = {block_threads(p.S), 1, 1},
                     .shared_bytes = static_cast<int>(shared_bytes),
                     .tile_h = tile.tile_h,
                     .tile_w = static_cast<int>(p.Q),
                     .vector = static_cast<int>(16 / size_of(p.dtype)),
                     .planes = tile.planes * tile.images,
                     .parts = static_cast<int>(parts)});
}

}  // namespace cnnext::cuda
