// What the channels-first depthwise kernels share on the host: the tile of a block, and how a planner chooses it.
//
// A plane is one channel of one image. A block owns whole planes of the output that follow one another in memory, or a
// band of rows of one plane: config.planes planes, config.tile_h rows. It cuts them into patches of config.tile_w
// columns and as many rows as PatchLimits allows; a thread owns every so manyeth patch, mostly one.
#pragma once

#include "../conv_params.h"
#include "kernels.h"
#include "launch_config.h"

namespace cnnext::cuda {

struct TileNchw {
  int planes;        // of a block, at most; one where there are several bands
  int groups;        // of planes in an image
  int bands;         // of rows in a plane
  int band_rows;     // at most
  int patch_rows;    // at most
  int patches;       // of a block in a plane
  int strips;        // patches side by side
  int multiplier;    // planes of the output for each of the input
  bool dense_input;  // what a block reads is one run of memory
  bool dense_output;

  // ceil(2^32 / patches) and ceil(2^32 / strips), for divisions by them.
  uint32_t patches_inverse, strips_inverse;

  // Where shared memory holds the filters and the outputs, behind the input, and its size; in bytes.
  int64_t filter_offset, output_offset, bytes;
};

/// Planes of a tensor: how many there are in an image, and their size.
struct Planes {
  int64_t count, rows, columns;
};

/// What a thread of a kernel makes at most, and what a block has.
struct PatchLimits {
  int rows, columns;
  int row_step;  // patches begin at rows that are multiples of it
  int threads;
};

constexpr PatchLimits forward_nchw_patch(int64_t filter) { return {filter == 7 ? 7 : 14, 7, 1, 64}; }
constexpr PatchLimits backward_input_nchw_patch() { return {14, 14, 2, 64}; }

/// The tiles that a configuration of either kernel stands for.
TileNchw forward_nchw_tile(const ConvParams& params, const LaunchConfig& config);
TileNchw backward_input_nchw_tile(const ConvParams& params, const LaunchConfig& config);

using TileOf = TileNchw (*)(const ConvParams&, const LaunchConfig&);

/// Appends configurations of `kernel` for `output` planes of params.N images, or none if nothing fits the device.
void append_tiles_nchw(Kernel kernel, const Problem& problem, const Planes& output, const PatchLimits& patch,
                       TileOf tile_of, Configs& configs);

/// Whether the kernels know the layout, dtype, filter and stride of a problem, and its sizes fit their 32-bit
/// arithmetic within a plane.
bool runs_nchw(const ConvParams& params);

/// The input gradient of a convolution of stride 1, as a forward convolution of dy with every filter turned round.
ConvParams turned_round(const ConvParams& params);

/// depthwise_forward_nchw; with `turned` it reads each filter from its last tap to its first.
void depthwise_forward_nchw_turned(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                                   const void* bias, void* y, bool turned, Stream stream);

}  // namespace cnnext::cuda
