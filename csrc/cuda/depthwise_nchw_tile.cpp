#include "depthwise_nchw_tile.h"

#include <algorithm>

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 128;     // of a block, as many as a tile gives work
constexpr int kMaxThreads = 256;  // what the kernels are compiled for
constexpr int kWarp = 32;

// Several blocks share a multiprocessor: while some wait for their input, others compute.
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kReservedBytes = 1024;  // of shared memory, by the system for each block

constexpr int64_t kMaxSize = int64_t{1} << 28;

/// Bytes of a region of shared memory: a run of memory is copied to where it has the same address modulo 16.
int64_t region(int64_t elements, int64_t element_bytes) { return (elements * element_bytes + 16 + 15) / 16 * 16; }

bool is_dense(const Strides4& strides, int64_t planes, int64_t rows, const Planes& shape) {
  return (rows == 1 || strides.h == shape.columns) && (planes == 1 || strides.c == shape.rows * shape.columns);
}

/// The part of a tile that does not depend on the input.
TileNchw output_tile(const LaunchConfig& config, const Planes& output, const Strides4& strides) {
  TileNchw tile{};
  tile.strips = config.block[0];
  tile.strip_rows = config.tile_h;
  tile.planes = config.planes;
  tile.row_strips = config.block[1] / config.planes;
  tile.band_rows = static_cast<int>(std::min<int64_t>(output.rows, tile.row_strips * tile.strip_rows));
  tile.bands = static_cast<int>(ceil_div(output.rows, tile.band_rows));
  tile.groups = static_cast<int>(ceil_div(output.count, tile.planes));
  tile.dense_output = is_dense(strides, tile.planes, tile.bands == 1 ? output.rows : tile.band_rows, output);
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

/// Makes the block smaller; false if it is as small as can be.
bool shrink(LaunchConfig& config, const PatchLimits& patch) {
  int row_strips = config.block[1] / config.planes;
  if (config.planes > 1) {
    config.planes = static_cast<int>(ceil_div(config.planes, 2));
  } else if (row_strips > 1) {
    row_strips = static_cast<int>(ceil_div(row_strips, 2));
  } else if (config.tile_h > patch.row_step) {
    config.tile_h = static_cast<int>(ceil_div(config.tile_h / 2, patch.row_step)) * patch.row_step;
  } else {
    return false;
  }
  config.block[1] = config.planes * row_strips;
  return true;
}

}  // namespace

TileNchw forward_nchw_tile(const ConvParams& params, const LaunchConfig& config) {
  const Planes input{params.C, params.H, params.W}, output{params.K, params.P, params.Q};
  TileNchw tile = output_tile(config, output, params.y_strides);
  const int64_t multiplier = params.K / params.C;
  const int64_t planes = std::min(params.C, (tile.planes + multiplier - 2) / multiplier + 1);
  const int64_t rows = (tile.band_rows - 1) * params.stride_h + (params.R - 1) * params.dilation_h + 1;
  set_input(tile, params, input, params.x_strides, planes, tile.bands == 1 ? params.H : std::min(params.H, rows));
  // Sums wait in float32 for the activation.
  tile.bytes = tile.output_offset + region(tile.planes * int64_t{tile.band_rows} * params.Q, sizeof(float));
  return tile;
}

TileNchw backward_input_nchw_tile(const ConvParams& params, const LaunchConfig& config) {
  const Planes dy{params.K, params.P, params.Q}, dx{params.C, params.H, params.W};
  TileNchw tile = output_tile(config, dx, params.x_strides);
  const int64_t rows = (tile.band_rows + (params.R - 1) * params.dilation_h) / params.stride_h + 1;
  set_input(tile, params, dy, params.y_strides, tile.planes, tile.bands == 1 ? params.P : std::min(params.P, rows));
  tile.bytes = tile.output_offset + region(tile.planes * int64_t{tile.band_rows} * params.W, size_of(params.dtype));
  return tile;
}

bool choose_tile_nchw(const Problem& problem, const Planes& output, const PatchLimits& patch, TileOf tile_of,
                      LaunchConfig& config) {
  const int64_t strips = ceil_div(output.columns, patch.tile_w);
  if (strips > kMaxThreads) return false;
  // Strips of rows as even as can be: the threads of a warp have the same to do.
  const int64_t even_rows = ceil_div(output.rows, ceil_div(output.rows, patch.tile_h));
  config.tile_h = static_cast<int>(ceil_div(even_rows, patch.row_step)) * patch.row_step;
  config.tile_w = patch.tile_w;

  const int64_t row_strips = ceil_div(output.rows, config.tile_h);
  const int64_t patches = strips * row_strips;  // of a plane
  if (patches <= kThreads) {
    const int64_t groups = ceil_div(output.count, kThreads / patches);
    config.planes = static_cast<int>(ceil_div(output.count, groups));
    config.block[1] = static_cast<int>(row_strips) * config.planes;
  } else {
    const int64_t bands = ceil_div(row_strips, std::max<int64_t>(1, kThreads / strips));
    config.planes = 1;
    config.block[1] = static_cast<int>(ceil_div(row_strips, bands));
  }
  config.block[0] = static_cast<int>(strips);

  const DeviceFacts& device = problem.device;
  const int64_t most_bytes = device.shared_bytes_per_multiprocessor / kBlocksPerMultiprocessor - kReservedBytes;
  const auto blocks = [&](const TileNchw& tile) { return problem.params.N * tile.groups * tile.bands; };
  const int64_t enough_blocks = int64_t{device.multiprocessors} * kBlocksPerMultiprocessor;
  TileNchw tile = tile_of(problem.params, config);
  while (tile.bytes > most_bytes || (blocks(tile) < enough_blocks && config.block[0] * config.block[1] > kWarp &&
                                     tile.row_strips * tile.planes > 1)) {
    if (!shrink(config, patch)) break;
    tile = tile_of(problem.params, config);
  }
  if (tile.bytes > device.shared_bytes_per_block || blocks(tile) > kMaxGridX) return false;

  config.grid[0] = blocks(tile);
  config.shared_bytes = static_cast<int>(tile.bytes);
  config.vector = tile.dense_input && tile.dense_output ? 16 / size_of(problem.params.dtype) : 1;
  return true;
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
                           params.R * params.dilation_h,
                           params.S * params.dilation_w,
                           params.K};
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
