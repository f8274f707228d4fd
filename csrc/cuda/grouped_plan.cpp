// Configurations of the grouped kernels: the channels_last implicit GEMMs by a cost model, then those of last resort.
//
// The cost of a tile is counted in clocks: the multiplications of the busiest SM's blocks, tails of the tile included,
// at the rate that the tile's shape can reach, plus a block's start and end. With few outputs most SMs would have no
// block; there the reduced dimension is split in parts, if what that saves is more than their second stage costs. All
// this ranks the configurations of one problem; the static report predicts times.
#include <algorithm>
#include <array>
#include <cstdlib>

#include "grouped_axes.h"
#include "grouped_narrow_tile.h"
#include "launch_config.h"

namespace cnnext::cuda {
namespace {

/// A tile of the implicit GEMM (grouped_nhwc.cuh).
struct GemmTileShape {
  int m, n, threads;
  int most_blocks;    // that an SM holds, as registers go
  double efficiency;  // of the multiplications: a smaller tile loads more a multiplication from the L2 cache
  double overhead;    // start of a block, until its first tiles are there, and its epilogue, in steps of the main loop

  /// Four stages of lines of 128 bytes.
  int shared_bytes() const { return 4 * 128 * (m + n); }
  int blocks_per_multiprocessor(const DeviceFacts& device) const {
    return std::min(most_blocks, device.shared_bytes_per_multiprocessor / (shared_bytes() + 1024));
  }
};

constexpr GemmTileShape kTiles[] = {{128, 128, 256, 1, 1.0, 12}, {128, 64, 256, 2, 0.66, 6}, {64, 64, 128, 3, 0.5, 6}};

/// Clocks of an SM for an output of a step, a line deep: 1280 multiply-adds of 16 bits a clock through mma.sync, half
/// as many of TF32 on lines with half as many elements; 128 of float32 without tensor cores.
constexpr double kClocksOnTensorCores = 0.05, kClocksOfFloat32 = 0.25;

/// A second stage: its launch, and what the device writes to and reads from the L2 cache of its sums.
constexpr double kClocksOfLaunch = 3500, kBytesOfSumsAClock = 2500;

/// The most parts of a reduced dimension, and the fewest steps in one: fewer would not fill the stages.
constexpr int kMostParts = 32, kFewestSteps = 4;

/// Work of a launch: blocks of a tile, each with `steps`, and the sums of one part.
struct Work {
  int64_t blocks, steps, sums;
};

double first_stage(const GemmTileShape& tile, const Work& work, int64_t parts, double clocks,
                   const DeviceFacts& device) {
  const int at_once = tile.blocks_per_multiprocessor(device);
  const int64_t slots = int64_t{device.multiprocessors} * at_once;
  // Blocks that the busiest SM works through: full waves, and its share of the last one.
  const int64_t blocks = work.blocks * parts;
  const int64_t on_one = blocks / slots * at_once + ceil_div(blocks % slots, device.multiprocessors);
  const double outputs = static_cast<double>(tile.m) * tile.n / tile.efficiency;
  return static_cast<double>(on_one) * outputs *
         (static_cast<double>(ceil_div(work.steps, parts)) * clocks + tile.overhead * kClocksOnTensorCores);
}

double second_stage(const Work& work, int64_t parts) {
  return kClocksOfLaunch + 8.0 * static_cast<double>(work.sums * parts) / kBytesOfSumsAClock;
}

/// A number of parts, and the clocks of all.
struct Choice {
  int parts;
  double cost;
};

/// The cheapest number of parts: a power of two, so that one part more or less is not tried for nothing.
Choice cheapest_parts(const GemmTileShape& tile, const Work& work, double clocks, const DeviceFacts& device) {
  Choice best{1, first_stage(tile, work, 1, clocks, device)};
  for (int parts = 2; parts <= kMostParts && work.steps / parts >= kFewestSteps; parts *= 2) {
    const double cost = first_stage(tile, work, parts, clocks, device) + second_stage(work, parts);
    if (cost < best.cost) best = {parts, cost};
  }
  return best;
}

/// The number of parts of a weight gradient, which always has a second stage: such that the blocks fill 1 to 4 waves,
/// with at least 8 steps each.
Choice filling_parts(const GemmTileShape& tile, const Work& work, double clocks, const DeviceFacts& device) {
  const int64_t places = int64_t{device.multiprocessors} * tile.blocks_per_multiprocessor(device);
  const int64_t most = std::min(ceil_div(work.steps, 8), kMaxGridYZ);
  Choice best{0, 0};
  for (int waves = 1; waves <= 4; ++waves) {
    const int64_t parts = std::clamp<int64_t>(waves * places / work.blocks, 1, most);
    const double cost = first_stage(tile, work, parts, clocks, device) + second_stage(work, parts);
    if (best.parts == 0 || cost < best.cost) best = {static_cast<int>(parts), cost};
  }
  return best;
}

constexpr bool is_multiple(int64_t value, int64_t of) { return value % of == 0; }

/// Whether an activation can be read 16 bytes at a time.
bool is_aligned(const Strides4& strides, int vector) {
  return is_multiple(strides.n, vector) && is_multiple(strides.h, vector) && is_multiple(strides.w, vector);
}

/// Whether every number fits where the kernels keep it, and activations can be read 16 bytes at a time.
bool fits_channels_last_kernels(const Problem& problem) {
  const ConvParams& p = problem.params;
  if (p.dtype == DType::kFloat64) return false;
  const int vector = 16 / size_of(p.dtype);
  // NCHW is converted first; the workspace is aligned.
  const bool aligned = problem.alignment >= 16 && is_aligned(p.x_strides, vector) && is_aligned(p.y_strides, vector);
  if (p.layout == Layout::kNHWC && !aligned) return false;
  if (!is_multiple(p.C, vector) || !is_multiple(p.K, vector)) return false;
  constexpr int64_t kMost = int64_t{1} << 28;  // of a position, with room for the sums in the kernels' 32 bits
  const auto small = [](auto... values) { return ((values < kMost) && ...); };
  return p.groups <= kMaxGridYZ &&
         small(p.N, p.C, p.K, p.H, p.W, p.P, p.Q, p.R * p.S, p.pad_h, p.pad_w, p.dilation_h * p.R, p.dilation_w * p.S,
               p.P * p.stride_h, p.Q * p.stride_w, p.K * p.channels_per_group() / p.groups * p.R * p.S);
}

/// Whether a group's channels are whole vectors too.
bool fits_implicit_gemm(const Problem& problem) {
  const ConvParams& p = problem.params;
  const int vector = 16 / size_of(p.dtype);
  return is_multiple(p.channels_per_group(), vector) && is_multiple(p.outputs_per_group(), vector) &&
         fits_channels_last_kernels(problem);
}

/// Whether the groups are of a width that the kernels for narrow groups have.
bool has_narrow_groups(const Problem& problem) {
  const ConvParams& p = problem.params;
  const int64_t width = p.channels_per_group();
  return size_of(p.dtype) == 2 && p.outputs_per_group() == width && p.groups > 1 &&
         (width == 4 || width == 8 || width == 16 || width == 32) && fits_channels_last_kernels(problem);
}

/// The problem as the implicit GEMM sees it. Activations that it cannot read as they lie, since they are not aligned or
/// their channels are no whole vectors, are copied to the workspace, where zeros fill the last vector. Only one group
/// can have more channels.
struct Copied {
  Problem problem;
  int channels = 0, outputs = 0;  // of the copies of x and y; 0: as they are
  bool grows_filter = false;      // the filter gets the channels of zeros too

  explicit Copied(const Problem& original) : problem(original) {
    ConvParams& p = problem.params;
    const int vector = 16 / size_of(p.dtype);
    const auto copy = [&](int64_t& count, Strides4& strides, int64_t h, int64_t w) {
      const bool is_whole = is_multiple(count, vector);
      const bool as_it_is = p.layout == Layout::kNCHW || (original.alignment >= 16 && is_aligned(strides, vector));
      if (is_whole ? as_it_is : p.groups > 1) return 0;
      count = ceil_div(count, vector) * vector;
      strides = {h * w * count, 1, w * count, count};
      return static_cast<int>(count);
    };
    channels = copy(p.C, p.x_strides, p.H, p.W);
    outputs = copy(p.K, p.y_strides, p.P, p.Q);
    grows_filter = p.C != original.params.C;
    if (channels > 0 && outputs > 0) problem.alignment = 16;
  }
};

bool needs_packing(const Problem& problem) {
  const ConvParams& p = problem.params;
  const bool is_in_order = problem.filter_channels_last || p.R * p.S == 1 || p.channels_per_group() == 1;
  return !is_in_order || problem.filter_alignment < 16;
}

/// The product that a kernel computes.
struct Product {
  int64_t pixels, columns, steps;
  int64_t sums;  // of a part
  int classes = 1;
  bool is_split = false;  // in parts always, not only if it pays
};

/// Adds the tiles, as they are and in parts if that pays, the cheapest first.
void append_tiles(const Copied& copied, Kernel kernel, const Product& product, bool tf32, Configs& configs) {
  struct Candidate {
    double cost;
    LaunchConfig config;
  };
  std::vector<Candidate> candidates;
  const Problem& problem = copied.problem;
  const double clocks = size_of(problem.params.dtype) == 2 || tf32 ? kClocksOnTensorCores : kClocksOfFloat32;
  for (const GemmTileShape& tile : kTiles) {
    const int64_t tiles = ceil_div(product.pixels, tile.m) * ceil_div(product.columns, tile.n);
    if (tiles > kMaxGridX || tile.shared_bytes() > problem.device.shared_bytes_per_block) continue;
    LaunchConfig config;
    config.kernel = kernel;
    config.grid[0] = tiles, config.grid[1] = problem.params.groups, config.grid[2] = product.classes;
    config.block[0] = tile.threads, config.shared_bytes = tile.shared_bytes();
    config.tile_h = tile.m, config.tile_w = tile.n, config.vector = 16 / size_of(problem.params.dtype);
    config.tf32 = tf32;
    config.padded_channels = copied.channels, config.padded_outputs = copied.outputs;
    config.packs_filter =
        kernel != Kernel::kGroupedBackwardWeightNhwc && (copied.grows_filter || needs_packing(problem));
    config.converts = problem.params.layout == Layout::kNCHW;
    const Work work{tiles * problem.params.groups * product.classes, product.steps, product.sums};
    if (!product.is_split) candidates.push_back({first_stage(tile, work, 1, clocks, problem.device), config});
    const Choice choice = product.is_split ? filling_parts(tile, work, clocks, problem.device)
                                           : cheapest_parts(tile, work, clocks, problem.device);
    if (choice.parts == 1 && !product.is_split) continue;
    config.parts = choice.parts, config.grid[2] = int64_t{product.classes} * choice.parts;
    candidates.push_back({choice.cost, config});
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.cost < b.cost; });
  for (const Candidate& candidate : candidates) configs.push_back(candidate.config);
}

/// The same for TF32's arithmetic first, if it is allowed.
void append_tiles(const Copied& copied, Kernel kernel, const Product& product, Configs& configs) {
  const Problem& problem = copied.problem;
  if (problem.allow_tf32 && problem.params.dtype == DType::kFloat32) {
    append_tiles(copied, kernel, product, true, configs);
  }
  append_tiles(copied, kernel, product, false, configs);
}

/// The tiles of 8 x 16 pixels and 64 channels of the kernels for narrow groups.
void append_narrow(const Problem& problem, Kernel kernel, const GemmAxes& axes, Configs& configs) {
  const ConvParams& p = problem.params;
  const auto outputs = [](const TapAxis& axis) { return axis.outputs; };
  LaunchConfig config;
  config.kernel = kernel;
  config.grid[0] = p.N * ceil_div(largest(axes.h, axes.classes_h, outputs), NarrowTile::kH) *
                   ceil_div(largest(axes.w, axes.classes_w, outputs), NarrowTile::kW) * ceil_div(p.C, NarrowTile::kN);
  config.grid[2] = axes.classes_h * axes.classes_w;
  config.block[0] = NarrowTile::kThreads;
  config.tile_h = NarrowTile::kH, config.tile_w = NarrowTile::kW, config.vector = 8;
  config.packs_filter = needs_packing(problem), config.converts = p.layout == Layout::kNCHW;
  const int64_t halo_h =
      largest(axes.h, axes.classes_h, [](const TapAxis& axis) { return halo_of(axis, NarrowTile::kH); });
  const int64_t halo_w =
      largest(axes.w, axes.classes_w, [](const TapAxis& axis) { return halo_of(axis, NarrowTile::kW); });
  const auto taps = [](const TapAxis& axis) { return axis.taps; };
  const int64_t filter = int64_t{largest(axes.h, axes.classes_h, taps)} * largest(axes.w, axes.classes_w, taps) *
                         NarrowTile::kN * std::max<int64_t>(p.channels_per_group(), 8) * 2;
  const int64_t shared = std::max<int64_t>(halo_h * halo_w * 128 + filter, NarrowTile::kResultBytes);
  // Two blocks must fit an SM, or nothing hides the time of a block's copies.
  if (shared > problem.device.shared_bytes_per_multiprocessor / 2 - 1024) return;
  if (shared > problem.device.shared_bytes_per_block || config.grid[0] > kMaxGridX) return;
  config.shared_bytes = static_cast<int>(shared);
  configs.push_back(config);
}

/// A tile of the kernels with wgmma (grouped_wgmma_nhwc.cuh).
struct WgmmaTileShape {
  int m, n, threads, stages;

  /// Stages of lines of 128 bytes, and what aligning them may take.
  int shared_bytes() const { return stages * 128 * (m + n) + 1024; }
};

constexpr WgmmaTileShape kWgmmaTiles[] = {{128, 128, 288, 3}, {128, 256, 288, 4}};

/// A problem that was measured on a card, and was faster with wgmma than with mma.sync there.
struct WgmmaWin {
  Kernel kernel;
  int64_t pixels, columns, depth, taps;  // of the product
};

/// A problem takes the kernel with wgmma if a row here is no larger in any number, so nothing does until somebody has
/// measured (docs/kernels/grouped.md says how).
constexpr std::array<WgmmaWin, 0> kWgmmaWins{};

/// What the tensor maps have room for (tensor_map.h).
constexpr int64_t kMaxCorner = 127, kMaxTapOffset = 255, kMaxTensorStep = 8, kMaxTensorStride = (int64_t{1} << 40) / 2;

bool fits_tensor_map(const TapAxis* axes, int classes) {
  return std::all_of(axes, axes + classes, [](const TapAxis& axis) {
    if (axis.outputs == 0 || axis.taps == 0) return true;
    const int64_t lower = lowest_tap(axis), upper = lower + int64_t{axis.outputs - 1} * axis.step + 1 - axis.size;
    return std::abs(lower) <= kMaxCorner && std::abs(upper) <= kMaxCorner && axis.step <= kMaxTensorStep &&
           int64_t{axis.taps - 1} * std::abs(axis.tap_step) <= kMaxTapOffset;
  });
}

/// What a product reads by pixels: the strides there, and the channels of a group.
struct Source {
  const Strides4& strides;
  int64_t depth;
};

void insert_wgmma(const Copied& copied, Kernel kernel, const GemmAxes& axes, const Source& source, int64_t columns,
                  Configs& configs) {
  const Problem& problem = copied.problem;
  const ConvParams& p = problem.params;
  if (!problem.device.wgmma || size_of(p.dtype) != 2 || !fits_implicit_gemm(problem)) return;
  // A line of a tile is of one group; past the channels of the only group it is zeros.
  if (source.depth < 64 || columns < 64 || (p.groups > 1 && !is_multiple(source.depth, 64))) return;
  if (!fits_tensor_map(axes.h, axes.classes_h) || !fits_tensor_map(axes.w, axes.classes_w)) return;
  const auto fits_stride = [](int64_t stride) { return stride > 0 && stride < kMaxTensorStride; };
  const Strides4& strides = source.strides;
  if (p.layout == Layout::kNHWC && !(fits_stride(strides.n) && fits_stride(strides.h) && fits_stride(strides.w)))
    return;

  const auto outputs = [](const TapAxis& axis) { return axis.outputs; };
  const int64_t pixels = p.N * largest(axes.h, axes.classes_h, outputs) * largest(axes.w, axes.classes_w, outputs);
  Configs tiles;
  for (const WgmmaTileShape& tile : kWgmmaTiles) {
    LaunchConfig config;
    config.kernel = kernel;
    config.grid[0] = ceil_div(pixels, tile.m) * ceil_div(columns, tile.n);
    config.grid[1] = p.groups, config.grid[2] = axes.classes_h * axes.classes_w;
    config.block[0] = tile.threads, config.shared_bytes = tile.shared_bytes();
    config.tile_h = tile.m, config.tile_w = tile.n, config.vector = 8;
    config.padded_channels = copied.channels, config.padded_outputs = copied.outputs;
    config.packs_filter = copied.grows_filter || needs_packing(problem);
    config.converts = p.layout == Layout::kNCHW;
    if (config.grid[0] > kMaxGridX || config.shared_bytes > problem.device.shared_bytes_per_block) continue;
    // The wider tile reads the source half as often, but needs columns, and work for every SM.
    const int64_t blocks = config.grid[0] * config.grid[1] * config.grid[2];
    const bool fills_device = tile.n <= columns && blocks >= problem.device.multiprocessors;
    tiles.insert(fills_device ? tiles.begin() : tiles.end(), config);
  }
  const int64_t taps = p.R * p.S;
  const bool wins = std::any_of(kWgmmaWins.begin(), kWgmmaWins.end(), [&](const WgmmaWin& win) {
    return win.kernel == kernel && win.pixels <= pixels && win.columns <= columns && win.depth <= source.depth &&
           win.taps <= taps;
  });
  configs.insert(wins || problem.prefer_wgmma ? configs.begin() : configs.end(), tiles.begin(), tiles.end());
}

/// Lines of 128 bytes.
int64_t lines_of(const ConvParams& p, int64_t elements) { return ceil_div(elements * size_of(p.dtype), 128); }

}  // namespace

void plan_grouped_forward_nhwc(const Problem& original, Configs& configs) {
  const Copied copied(original);
  const ConvParams& p = copied.problem.params;
  if (!fits_implicit_gemm(copied.problem)) return;
  const int64_t pixels = p.N * p.P * p.Q, steps = lines_of(p, p.R * p.S * p.channels_per_group());
  const Product product{pixels, p.outputs_per_group(), steps, pixels * p.K};
  append_tiles(copied, Kernel::kGroupedForwardNhwc, product, configs);
}

void plan_grouped_backward_input_nhwc(const Problem& original, Configs& configs) {
  const Copied copied(original);
  const ConvParams& p = copied.problem.params;
  // A class of positions modulo the stride has its own axis; the kernel has room for two.
  if (!fits_implicit_gemm(copied.problem) || p.stride_h > kMaxAxes || p.stride_w > kMaxAxes) return;
  const int classes = static_cast<int>(p.stride_h * p.stride_w);
  const int64_t pixels = p.N * ceil_div(p.H, p.stride_h) * ceil_div(p.W, p.stride_w);
  const int64_t steps = ceil_div(p.R * p.S, classes) * lines_of(p, p.outputs_per_group());
  const Product product{pixels, p.channels_per_group(), steps, p.N * p.H * p.W * p.C, classes};
  append_tiles(copied, Kernel::kGroupedBackwardInputNhwc, product, configs);
}

void plan_grouped_forward_wgmma_nhwc(const Problem& original, Configs& configs) {
  const Copied copied(original);
  const ConvParams& p = copied.problem.params;
  insert_wgmma(copied, Kernel::kGroupedForwardWgmmaNhwc, forward_axes(p), {p.x_strides, p.channels_per_group()},
               p.outputs_per_group(), configs);
}

void plan_grouped_backward_input_wgmma_nhwc(const Problem& original, Configs& configs) {
  const Copied copied(original);
  const ConvParams& p = copied.problem.params;
  if (p.stride_h > kMaxAxes || p.stride_w > kMaxAxes) return;
  insert_wgmma(copied, Kernel::kGroupedBackwardInputWgmmaNhwc, backward_axes(p), {p.y_strides, p.outputs_per_group()},
               p.channels_per_group(), configs);
}

void plan_grouped_backward_weight_nhwc(const Problem& original, Configs& configs) {
  const Copied copied(original);
  const Problem& problem = copied.problem;
  const ConvParams& p = problem.params;
  if (!fits_implicit_gemm(problem)) return;
  const int64_t steps = ceil_div(p.N * p.P * p.Q, 128 / size_of(p.dtype));
  // Rows are output channels, columns the taps' input channels.
  const int64_t columns = p.R * p.S * p.channels_per_group();
  Product product{p.outputs_per_group(), columns, steps, p.K * columns};
  product.is_split = true;
  append_tiles(copied, Kernel::kGroupedBackwardWeightNhwc, product, configs);
}

void plan_grouped_forward_narrow_nhwc(const Problem& problem, Configs& configs) {
  if (has_narrow_groups(problem)) {
    append_narrow(problem, Kernel::kGroupedForwardNarrowNhwc, forward_axes(problem.params), configs);
  }
}

void plan_grouped_backward_input_narrow_nhwc(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  if (has_narrow_groups(problem) && p.stride_h <= kMaxAxes && p.stride_w <= kMaxAxes) {
    append_narrow(problem, Kernel::kGroupedBackwardInputNarrowNhwc, backward_axes(p), configs);
  }
}

/// A block sums one of `parts` parts of the tiles for 64 channels and up to 9 taps.
void plan_grouped_backward_weight_narrow_nhwc(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  if (!has_narrow_groups(problem)) return;
  const GemmAxes axes = forward_axes(p);
  const int64_t halo = int64_t{halo_of(axes.h[0], NarrowTile::kH)} * halo_of(axes.w[0], NarrowTile::kW);
  const int64_t shared = (NarrowTile::kM + halo) * 128;
  if (shared > problem.device.shared_bytes_per_multiprocessor / 2 - 1024) return;
  const int64_t tiles = p.N * ceil_div(p.P, NarrowTile::kH) * ceil_div(p.Q, NarrowTile::kW);
  LaunchConfig config;
  config.kernel = Kernel::kGroupedBackwardWeightNarrowNhwc;
  const int64_t bundles = ceil_div(p.C, NarrowTile::kN), tap_groups = ceil_div(p.R * p.S, 9);
  // Two rounds of blocks, four on an SM at a time, but at least 4 tiles each: a part costs a write and a read of all
  // sums.
  const int64_t wanted = ceil_div(int64_t{8} * problem.device.multiprocessors, bundles * tap_groups);
  config.parts = static_cast<int>(std::clamp<int64_t>(wanted, 1, ceil_div(tiles, 4)));
  config.grid[0] = bundles * config.parts, config.grid[1] = tap_groups;
  config.block[0] = NarrowTile::kThreads;
  config.shared_bytes = static_cast<int>(shared);
  config.tile_h = NarrowTile::kH, config.tile_w = NarrowTile::kW, config.vector = 8;
  config.converts = p.layout == Layout::kNCHW;
  if (tap_groups <= kMaxGridYZ) configs.push_back(config);
}

void plan_grouped_forward_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  configs.push_back(thread_per_element(Kernel::kGroupedForwardGeneral, p.N * p.K * p.P * p.Q));
}

void plan_grouped_backward_input_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  configs.push_back(thread_per_element(Kernel::kGroupedBackwardInputGeneral, p.N * p.C * p.H * p.W));
}

/// A block an output channel, a tap, and tile_w input channels.
void plan_grouped_backward_weight_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  int lanes = 1;
  while (p.layout == Layout::kNHWC && lanes < 32 && lanes < p.channels_per_group()) lanes *= 2;
  LaunchConfig config = thread_per_element(Kernel::kGroupedBackwardWeightGeneral, 0);
  config.grid[0] = std::min(p.K * (p.R * p.S + 1) * ceil_div(p.channels_per_group(), lanes), kMaxGridX);
  config.tile_w = lanes;
  configs.push_back(config);
}

}  // namespace cnnext::cuda
