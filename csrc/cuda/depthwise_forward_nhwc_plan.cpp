// Configurations of the channels_last depthwise strip kernels: which problems they run, and in what blocks and tiles.
#include <algorithm>
#include <cstdlib>

#include "depthwise_strip_nhwc.h"

namespace cnnext::cuda {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

/// How many blocks, of what shape, for a tile height.
struct Blocks {
  int block[3];
  int64_t count;
  int64_t threads;  // of a block, in whole warps
};

/// Strips of a block that leave the fewest threads of its warps and of its last blocks along a row without work.
int choose_strips(int64_t strips, int lanes) {
  int best = 1;
  double best_share = 0;
  for (int y = static_cast<int>(std::min<int64_t>(strips, kStripThreads / lanes)); y >= 1; --y) {
    const int threads = lanes * y * (kStripThreads / (lanes * y));
    const double share = static_cast<double>(strips) / round_up(strips, y) * threads / round_up(threads, 32);
    if (share > best_share) best = y, best_share = share;
  }
  return best;
}

Blocks make_blocks(const StripProblem& problem, int64_t tile_h) {
  const int64_t vectors = ceil_div(problem.channels, problem.strip.vector);
  const int lanes = static_cast<int>(ceil_div(vectors, ceil_div(vectors, kStripLanes)));
  const int64_t strips = problem.columns.classes * ceil_div(problem.columns.length, problem.strip.width);
  const int64_t bands = problem.images * problem.rows.classes * ceil_div(problem.rows.length, tile_h);
  const int y = choose_strips(strips, lanes);
  const int z = static_cast<int>(std::min<int64_t>(bands, kStripThreads / (lanes * y)));
  return {
      {lanes, y, z}, ceil_div(vectors, lanes) * ceil_div(strips, y) * ceil_div(bands, z), round_up(lanes * y * z, 32)};
}

/// Time for a tile height, in rows of a block: the blocks that the busiest multiprocessor runs, times the rows of a
/// tile. With few blocks an SM has too little on its way and takes as long as for two thirds of those that it can hold.
/// Rows that two tiles share are half price: they come from a cache, and not all of their products are needed.
double cost(const StripProblem& problem, const DeviceFacts& device, int64_t tile_h) {
  const Blocks blocks = make_blocks(problem, tile_h);
  const double held = static_cast<double>(problem.strip.blocks) * kStripThreads / blocks.threads;
  const double run = std::max<double>(ceil_div(blocks.count, device.multiprocessors), held * 2 / 3);
  return run * blocks.threads * (tile_h * problem.rows_per_output + problem.extra_rows * 0.5);
}

}  // namespace

void append_strip_configs(const StripProblem& problem, const DeviceFacts& device, Configs& configs) {
  const int64_t length = problem.rows.length;
  if (problem.images * problem.rows.classes * length > kMaxGridX - kStripThreads) return;
  const auto append = [&](int64_t tile_h) {
    const Blocks blocks = make_blocks(problem, tile_h);
    if (blocks.count > kMaxGridX) return;
    configs.push_back({.kernel = problem.kernel,
                       .grid = {blocks.count, 1, 1},
                       .block = {blocks.block[0], blocks.block[1], blocks.block[2]},
                       .tile_h = static_cast<int>(tile_h),
                       .tile_w = problem.strip.width,
                       .vector = problem.strip.vector});
  };
  // Tiles of equal height, the fewest first: among equals, tall ones read less.
  int64_t best = length;
  double best_cost = cost(problem, device, length);
  for (int64_t tiles = 2; tiles <= ceil_div(length, 2); ++tiles) {
    const int64_t tile_h = ceil_div(length, tiles);
    const double tile_cost = cost(problem, device, tile_h);
    if (tile_cost < best_cost) best = tile_h, best_cost = tile_cost;
  }
  append(best);
  if (best != length) append(length);
}

bool is_strip_problem(const ConvParams& p) {
  // Offsets in bytes, with what a strip may address beyond the image's borders, although it does not read there.
  constexpr int64_t kLargest = (int64_t{1} << 31) - 1;
  const auto length_fits = [&](int64_t size, int64_t pad, int64_t dilation, int64_t stride) {
    const int64_t length = size + 2 * std::abs(pad) + 64 * dilation;
    return length <= kLargest && length * std::max<int64_t>(stride, 1) <= kLargest / 3 / size_of(p.dtype);
  };
  const auto image_fits = [&](int64_t height, int64_t width, const Strides4& strides) {
    return length_fits(height, p.pad_h, p.dilation_h, strides.h) &&
           length_fits(width, p.pad_w, p.dilation_w, strides.w);
  };
  return p.layout == Layout::kNHWC && p.dtype != DType::kFloat64 && p.K == p.C && p.R == p.S &&
         (p.R == 3 || p.R == 5 || p.R == 7) && p.stride_h == p.stride_w &&
         (p.stride_h == 1 || (p.stride_h == 2 && p.dilation_h == 1 && p.dilation_w == 1)) &&
         p.C <= kLargest / 3 / size_of(p.dtype) && image_fits(p.H, p.W, p.x_strides) &&
         image_fits(p.P, p.Q, p.y_strides);
}

bool fits_vector(const Problem& problem, int vector) {
  const ConvParams& p = problem.params;
  const auto divides = [&](const Strides4& strides, int64_t height, int64_t width) {
    return (p.N == 1 || strides.n % vector == 0) && (height == 1 || strides.h % vector == 0) &&
           (width == 1 || strides.w % vector == 0);
  };
  return p.C % vector == 0 && problem.alignment % (vector * size_of(p.dtype)) == 0 && divides(p.x_strides, p.H, p.W) &&
         divides(p.y_strides, p.P, p.Q);
}

void plan_correlation_nhwc(const Problem& problem, Kernel kernel, Configs& configs) {
  const ConvParams& p = problem.params;
  if (!is_strip_problem(p)) return;
  const int filter = static_cast<int>(p.R), stride = static_cast<int>(p.stride_h);
  Strip strip = correlation_strip(filter, stride, false, size_of(p.dtype));
  if (!fits_vector(problem, strip.vector)) strip = correlation_strip(filter, stride, true, size_of(p.dtype));
  append_strip_configs({.kernel = kernel,
                        .strip = strip,
                        .images = p.N,
                        .channels = p.C,
                        .rows = {p.dilation_h, ceil_div(p.P, p.dilation_h)},
                        .columns = {p.dilation_w, ceil_div(p.Q, p.dilation_w)},
                        .rows_per_output = stride,
                        .extra_rows = filter - stride},
                       problem.device, configs);
}

void plan_depthwise_forward_nhwc(const Problem& problem, Configs& configs) {
  plan_correlation_nhwc(problem, Kernel::kDepthwiseForwardNhwc, configs);
}

}  // namespace cnnext::cuda
