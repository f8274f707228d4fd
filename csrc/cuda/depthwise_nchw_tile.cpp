#include "depthwise_nchw_tile.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace cnnext::cuda {
namespace {

// Several blocks share a multiprocessor: while some wait for their input, others compute.
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kReservedBytes = 1024;  // of shared memory, by the system for each block
constexpr int kWarp = 32;

// Sizes that stay below it leave room for their sums in 32 bits.
constexpr int64_t kMaxSize = int64_t{1} << 28;
constexpr int64_t kMaxPatches = 1 << 16;  // of a block: see inverse_of

/// (i * inverse) >> 32 is i / divisor for i and divisor up to 2^16.
uint32_t inverse_of(int divisor) { return static_cast<uint32_t>(ceil_div(int64_t{1} << 32, divisor)); }

/// Bytes of a region of shared memory: a run of memory is copied to where it has the same address modulo 16.
int64_t region(int64_t elements, int64_t element_bytes) { return (elements * element_bytes + 16 + 15) / 16 * 16; }

bool is_dense(const Strides4& strides, int64_t planes, int64_t rows, const Planes& shape) {
  return (rows == 1 || strides.h == shape.columns) && (planes == 1 || strides.c == shape.rows * shape.columns);
}

/// Rows of a patch, where a band has `rows`: as even as can be, so that the threads of a warp have the same to do.
int64_t even_patch_rows(int64_t rows, const PatchLimits& patch) {
  const int64_t rows_of_each = ceil_div(rows, ceil_div(rows, patch.rows));
  return ceil_div(rows_of_each, patch.row_step) * patch.row_step;
}

/// The part of a tile that does not depend on the input.
TileNchw output_tile(const LaunchConfig& config, const PatchLimits& patch, const Planes& output,
                     const Strides4& strides, int64_t multiplier) {
  TileNchw tile{};
  tile.planes = config.planes;
  tile.groups = static_cast<int>(ceil_div(output.count, tile.planes));
  tile.band_rows = static_cast<int>(std::min<int64_t>(output.rows, config.tile_h));
  tile.bands = static_cast<int>(ceil_div(output.rows, tile.band_rows));
  tile.patch_rows = static_cast<int>(even_patch_rows(tile.band_rows, patch));
  tile.strips = static_cast<int>(ceil_div(output.columns, patch.columns));
  tile.patches = tile.strips * static_cast<int>(ceil_div(tile.band_rows, tile.patch_rows));
  tile.patches_inverse = inverse_of(tile.patches);
  tile.strips_inverse = inverse_of(tile.strips);
  tile.multiplier = static_cast<int>(multiplier);
  tile.dense_output = is_dense(strides, tile.planes, tile.band_rows, output);
  return tile;
}

/// Sets the part that does: a block reads at most `rows` of `planes` planes of the input.
void set_input(TileNchw& tile, const ConvParams& params, const Planes& input, const Strides4& strides, int64_t planes,
               int64_t rows) {
  const int64_t size = size_of(params.dtype);
  tile.filter_offset = region(planes * rows * input.columns, size);
  tile.output_offset = tile.filter_offset + region(tile.planes * params.R * params.S, size);
  tile.dense_input = is_dense(strides, planes, rows, input);
}

/// Makes the tile smaller; false if it is as small as can be.
bool shrink(LaunchConfig& config, const TileNchw& tile, const PatchLimits& patch) {
  const int64_t patches_below = ceil_div(tile.band_rows, tile.patch_rows);
  if (config.planes > 1) {
    config.planes = static_cast<int>(ceil_div(config.planes, 2));
  } else if (patches_below > 1) {
    config.tile_h = static_cast<int>(ceil_div(patches_below, 2)) * tile.patch_rows;
  } else if (tile.band_rows > patch.row_step) {
    config.tile_h = static_cast<int>(ceil_div(tile.band_rows / 2, patch.row_step)) * patch.row_step;
  } else {
    return false;
  }
  return true;
}

/// The tile with a patch for each thread of a block, or as many as a plane has.
void take_patch_for_each_thread(LaunchConfig& config, const Planes& output, const PatchLimits& patch) {
  const int64_t strips = ceil_div(output.columns, patch.columns);
  const int64_t patch_rows = even_patch_rows(output.rows, patch);
  const int64_t patches_below = ceil_div(output.rows, patch_rows);
  if (strips * patches_below <= patch.threads) {
    const int64_t groups = ceil_div(output.count, patch.threads / (strips * patches_below));
    config.planes = static_cast<int>(ceil_div(output.count, groups));
    config.tile_h = static_cast<int>(patches_below * patch_rows);
  } else {
    const int64_t bands = ceil_div(patches_below, std::max<int64_t>(1, patch.threads / strips));
    config.planes = 1;
    config.tile_h = static_cast<int>(ceil_div(patches_below, bands) * patch_rows);
  }
}

}  // namespace

TileNchw forward_nchw_tile(const ConvParams& params, const LaunchConfig& config) {
  const Planes input{params.C, params.H, params.W}, output{params.K, params.P, params.Q};
  const int64_t multiplier = params.K / params.C;
  TileNchw tile = output_tile(config, forward_nchw_patch(params.R), output, params.y_strides, multiplier);
  const int64_t planes = std::min(params.C, (tile.planes + multiplier - 2) / multiplier + 1);
  const int64_t rows = (tile.band_rows - 1) * params.stride_h + (params.R - 1) * params.dilation_h + 1;
  set_input(tile, params, input, params.x_strides, planes, tile.bands == 1 ? params.H : std::min(params.H, rows));
  // Sums wait in float32 for the activation.
  tile.bytes = tile.output_offset + region(tile.planes * int64_t{tile.band_rows} * params.Q, sizeof(float));
  return tile;
}

TileNchw backward_input_nchw_tile(const ConvParams& params, const LaunchConfig& config) {
  const Planes dy{params.K, params.P, params.Q}, dx{params.C, params.H, params.W};
  TileNchw tile = output_tile(config, backward_input_nchw_patch(), dx, params.x_strides, 1);
  const int64_t rows = (tile.band_rows + (params.R - 1) * params.dilation_h) / params.stride_h + 1;
  set_input(tile, params, dy, params.y_strides, tile.planes, tile.bands == 1 ? params.P : std::min(params.P, rows));
  tile.bytes = tile.output_offset + region(tile.planes * int64_t{tile.band_rows} * params.W, size_of(params.dtype));
  return tile;
}

void append_tiles_nchw(Kernel kernel, const Problem& problem, const Planes& output, const PatchLimits& patch,
                       TileOf tile_of, Configs& configs) {
  const DeviceFacts& device = problem.device;
  LaunchConfig config{.kernel = kernel, .block = {patch.threads, 1, 1}, .tile_w = patch.columns};
  if (ceil_div(output.columns, patch.columns) > kMaxPatches) return;
  take_patch_for_each_thread(config, output, patch);
  TileNchw tile = tile_of(problem.params, config);
  const auto blocks = [&] { return problem.params.N * tile.groups * tile.bands; };
  const auto shrink_while = [&](const auto& too_large) {
    while (too_large() && shrink(config, tile, patch)) tile = tile_of(problem.params, config);
  };
  const auto append = [&] {
    if (tile.bytes > device.shared_bytes_per_block || blocks() > kMaxGridX) return;
    config.grid[0] = blocks();
    config.shared_bytes = static_cast<int>(tile.bytes);
    config.vector = tile.dense_input && tile.dense_output ? 16 / size_of(problem.params.dtype) : 1;
    configs.push_back(config);
  };

  const int64_t most_bytes = device.shared_bytes_per_multiprocessor / kBlocksPerMultiprocessor - kReservedBytes;
  shrink_while([&] { return tile.bytes > most_bytes; });
  append();

  // With too few blocks to fill the device, smaller ones; but not below a warp of patches, or a row of them.
  const int64_t enough_blocks = int64_t{device.multiprocessors} * kBlocksPerMultiprocessor;
  const auto few_and_large = [&] {
    const int patches = tile.planes * tile.patches;
    return blocks() < enough_blocks && patches > kWarp && patches > tile.strips;
  };
  if (few_and_large()) {
    const size_t before = configs.size();
    shrink_while(few_and_large);
    append();
    // Preferred to the large one.
    if (before > 0 && configs.size() > before && configs[before - 1].kernel == kernel) {
      std::swap(configs[before - 1], configs[before]);
    }
  }
}

bool runs_nchw(const ConvParams& params) {
  if (params.layout != Layout::kNCHW || params.dtype == DType::kFloat64) return false;
  if (params.R != params.S || (params.R != 3 && params.R != 5 && params.R != 7)) return false;
  if (params.stride_h != params.stride_w || params.stride_h > 2) return false;
  const int64_t sizes[] = {params.H,
                           params.W,
                           params.P,
                           params.Q,
                           params.pad_h,
                           params.pad_w,
                           params.K,
                           params.R * params.dilation_h,
                           params.S * params.dilation_w};
  return std::all_of(std::begin(sizes), std::end(sizes), [](int64_t size) { return size < kMaxSize; });
}

ConvParams turned_round(const ConvParams& params) {
  ConvParams forward = params;
  std::swap(forward.C, forward.K);
  std::swap(forward.H, forward.P);
  std::swap(forward.W, forward.Q);
  std::swap(forward.x_strides, forward.y_strides);
  forward.pad_h = (params.R - 1) * params.dilation_h - params.pad_h;
  forward.pad_w = (params.S - 1) * params.dilation_w - params.pad_w;
  forward.activation = Activation::kNone;
  return forward;
}

}  // namespace cnnext::cuda
