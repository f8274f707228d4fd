// What the channels-first depthwise kernels share on the host: the tile of a block, and how a planner chooses it.
//
// A plane is one channel of one image. A block owns whole planes of the output that follow one another in memory, or a
// band of rows of one plane. Its threads own patches of at most tile_h x tile_w outputs: threadIdx.x counts the strips
// of columns, threadIdx.y the strips of rows, plane by plane.
#pragma once

#include "../conv_params.h"
#include "kernels.h"
#include "launch_config.h"

namespace cnnext::cuda {

struct TileNchw {
  int strips;      // of columns in a plane
  int strip_rows;  // rows of a thread, at most
  int row_strips;  // strips of rows in a band
  int band_rows;   // rows of a block in a plane, at most
  int bands;       // of rows in a plane
  int planes;      // of a block, at most; one where there are several bands
  int groups;      // of planes in an image

  // Where shared memory holds the filters and the outputs, behind the input, and its size; in bytes.
  int64_t filter_offset, output_offset, bytes;

  // What a block reads, or writes, is one run of memory.
  bool dense_input, dense_output;
};

/// Planes of a tensor: how many there are in an image, and their size.
struct Planes {
  int64_t count, rows, columns;
};

/// Bounds of a patch: a thread's columns are exactly tile_w unless the plane is narrower, its rows at most tile_h.
struct PatchLimits {
  int tile_h, tile_w;
  int row_step;  // patches begin at rows that are multiples of it
};

/// The largest patches of the kernels.
constexpr PatchLimits forward_nchw_patch(int64_t filter) { return {filter == 7 ? 4 : 7, 7, 1}; }
constexpr PatchLimits backward_input_nchw_patch() { return {14, 14, 2}; }

/// The tiles that a configuration of either kernel stands for.
TileNchw forward_nchw_tile(const ConvParams& params, const LaunchConfig& config);
TileNchw backward_input_nchw_tile(const ConvParams& params, const LaunchConfig& config);

using TileOf = TileNchw (*)(const ConvParams&, const LaunchConfig&);

/// Sets everything but `kernel` in `config` for `output` planes of params.N images; false if nothing fits the device.
bool choose_tile_nchw(const Problem& problem, const Planes& output, const PatchLimits& patch, TileOf tile_of,
                      LaunchConfig& config);

/// Whether the kernels know the layout, dtype, filter and stride of a problem, and its sizes fit their 32-bit
/// arithmetic within a plane.
bool runs_nchw(const ConvParams& params);

/// The input gradient of a convolution of stride 1, as a forward convolution of dy with every filter turned round.
ConvParams turned_round(const ConvParams& params);

/// depthwise_forward_nchw; with `turned` it reads each filter from its last tap to its first.
void depthwise_forward_nchw_turned(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                                   const void* bias, void* y, bool turned, Stream stream);

}  // namespace cnnext::cuda
