// What the channels_last depthwise forward and input-gradient kernels share on the host: what a thread owns, how
// threads form blocks, and which problems fit.
//
// A thread owns a strip of the result: `vector` neighbouring channels of `width` neighbouring columns, and walks down
// tile_h rows of it. With dilation d, "neighbouring" means d columns or rows apart: the columns (rows) of a residue
// modulo d are a dense problem of their own. In the gradient with stride 2 it is pairs of columns and of rows.
//
// A block is
//   x  neighbouring channel vectors, so that a warp's accesses cover whole lines of memory,
//   y  neighbouring strips of a row, so that the columns they share come from the L1 cache,
//   z  bands: the strips below, then those of the next image;
// the grid is all blocks in that order along its x.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace cnnext::cuda {

/// Threads of a block at most; the kernels' launch bounds promise it.
constexpr int kStripThreads = 128;

/// Channel vectors of a block at most: their filters lie in shared memory.
constexpr int kStripLanes = 32;

struct Strip {
  int vector;
  int width;
  int blocks;  // that an SM has to hold at once; limits the registers
};

/// Strips of the forward kernel, and of the gradient with stride 1. `narrow` ones, of one channel, need no alignment.
///
/// A thread's registers hold the sums of ceil(filter / stride) rows of outputs, width * vector each, and two rows of
/// inputs. The widths divide the 7, 14, 28 and 56 columns of ImageNet's planes where arithmetic is the limit (7), and
/// are 4 where memory is.
constexpr Strip correlation_strip(int filter, int stride, bool narrow, int element_bytes) {
  if (narrow) return {1, stride == 1 ? 7 : 4, 4};
  if (filter == 3) return {4, 4, element_bytes == 2 ? 4 : 3};
  if (stride == 2) return {2, 4, 4};
  return {2, 7, filter == 7 && element_bytes == 4 ? 2 : 3};
}

/// Strips of the gradient with stride 2; the width counts pairs of columns.
constexpr Strip transposed_strip(int filter, bool narrow) {
  if (narrow) return {1, 4, 4};
  return filter == 3 ? Strip{4, 2, 4} : Strip{2, 4, filter == 5 ? 3 : 2};
}

/// The rows or columns of the result as strips count them: `classes` residues of `length` each.
struct StripAxis {
  int64_t classes, length;
};

/// The pairs of rows (columns) of dx that the gradient with stride 2 counts in: of 2u and 2u + 1 counted from the
/// padding.
StripAxis pairs_axis(int64_t size, int64_t pad);

/// What decides over a strip kernel's blocks.
struct StripProblem {
  Kernel kernel;
  Strip strip;
  int64_t images, channels;
  StripAxis rows, columns;
  int rows_per_output, extra_rows;  // t rows of the result take t * rows_per_output + extra_rows rows of the input
};

/// Appends the configurations for it, unless its grid would be too large.
void append_strip_configs(const StripProblem& problem, const DeviceFacts& device, Configs& configs);

/// Whether the problem is one of the strip kernels': dtype, filter, stride, and offsets within an image of 32 bits.
bool is_strip_problem(const ConvParams& params);

/// Whether vectors of so many channels are aligned and make up all channels.
bool fits_vector(const Problem& problem, int vector);

/// The correlation that gives dx where the stride is 1: its x is dy, its y is dx, and its filter is turned round.
ConvParams gradient_as_correlation(const ConvParams& params);

/// The configurations of correlate_nhwc for `problem`, as those of `kernel`.
void plan_correlation_nhwc(const Problem& problem, Kernel kernel, Configs& configs);

/// The kernel behind depthwise_forward_nhwc; the filter is turned round if `flip`.
void correlate_nhwc(const ConvParams& params, bool flip, const LaunchConfig& config, const void* x, const void* w,
                    const void* bias, void* y, Stream stream);

}  // namespace cnnext::cuda
