// The weight gradient of a convolution as a matrix product: the kernel behind grouped_backward_weight_nhwc.
//
//   dw[tap][k][c] = sum over pixels m of dy[m][k] * x[m, tap][c],     dbias[k] = sum over pixels m of dy[m][k]
//
// M = output channels of a group, N = taps and input channels of a group, channels fastest; the reduced dimension is
// the pixels of dy. Both factors lie in memory with a pixel's channels together, so both tiles are in panels
// (implicit_gemm_math.cuh), a line a pixel.
//
// A block owns kM x kN elements of the filter for one part of the pixels, and writes its sums in float32 to a
// workspace; grouped_backward_weight_reduce adds the parts in fixed order. How many parts there are follows from the
// problem and the device's facts, never from its load, so results are the same in every run. The blocks of the first
// columns also add up dy for the bias.
//
// Assumes: channels_last, x and dy 16-byte aligned, as are their strides and the channels of a group on both sides.
#pragma once

#include "implicit_gemm.cuh"

namespace cnnext::cuda {

/// What a launch works on. Strides in elements.
struct WeightGemmOperands {
  const void* x;
  const void* dy;
  float* sums;       // [parts][groups][taps][rows][columns], then
  float* bias_sums;  // [parts][groups][rows], or null
  int64_t x_n, x_h, x_w;
  int64_t dy_n, dy_h, dy_w;
  int images, groups, parts;
  int rows, columns;  // of a group: output channels, input channels
  TapAxis h, w;
};

constexpr int kNoChannel = -1;

/// A pixel that moves on by a fixed number of pixels at a time without a division.
struct MovingPixel {
  int n, i, j;

  /// `by`: the number of pixels as digits, images, rows and columns, each less than its base.
  __device__ __forceinline__ void advance(const Pixel& by, int rows, int columns) {
    n += by.n, i += by.i, j += by.j;
    if (j >= columns) j -= columns, ++i;
    if (i >= rows) i -= rows, ++n;
  }
};

/// Grid: x = (row tile, column tile), columns fastest; y = groups; z = parts.
template <class T, class Math, class Tile, int kMinBlocks>
__global__ void __launch_bounds__(Tile::kThreads, kMinBlocks) implicit_gemm_weight_kernel(WeightGemmOperands op) {
  constexpr int kStepPixels = kLine<T>;
  constexpr int kRowPanels = Tile::kM / kLine<T>, kColumnPanels = Tile::kN / kLine<T>;
  // A thread copies the same piece of the lines of kPixels pixels, one after another.
  constexpr int kPixels = kStepPixels / Tile::kLinesAtOnce;
  static_assert(kStepPixels % Tile::kLinesAtOnce == 0 && Tile::kM % kLine<T> == 0 && Tile::kN % kLine<T> == 0);

  const int taps = op.h.taps * op.w.taps;
  const int column_tiles = (taps * op.columns + Tile::kN - 1) / Tile::kN;
  const int first_column = static_cast<int>(blockIdx.x % column_tiles) * Tile::kN;
  const int first_row = static_cast<int>(blockIdx.x / column_tiles) * Tile::kM;
  const int group = blockIdx.y;

  const int64_t pixels = static_cast<int64_t>(op.images) * op.h.outputs * op.w.outputs;
  const int64_t all_steps = (pixels + kStepPixels - 1) / kStepPixels;
  const int64_t first_step = blockIdx.z * all_steps / op.parts;
  const int64_t last_step = (blockIdx.z + 1) * all_steps / op.parts;

  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  const int line = threadIdx.x / kLinePieces, piece = threadIdx.x % kLinePieces;
  const int channel = piece * kVector<T>;
  const T* dy = static_cast<const T*>(op.dy) + static_cast<int64_t>(group) * op.rows + first_row + channel;
  const T* x = static_cast<const T*>(op.x) + static_cast<int64_t>(group) * op.columns;
  // The tap and the channels of the thread's piece in each panel of x.
  int tap_h[kColumnPanels], tap_w[kColumnPanels], x_channel[kColumnPanels];
#pragma unroll
  for (int panel = 0; panel < kColumnPanels; ++panel) {
    const int column = first_column + panel * kLine<T> + channel, tap = column / op.columns;
    tap_h[panel] = tap / op.w.taps * op.h.tap_step + op.h.first;
    tap_w[panel] = tap % op.w.taps * op.w.tap_step + op.w.first;
    x_channel[panel] = tap < taps ? column - tap * op.columns : kNoChannel;
  }
  const Pixel by = pixel_of(Tile::kLinesAtOnce, op.h.outputs, op.w.outputs);
  const Pixel first = pixel_of(first_step * kStepPixels + line, op.h.outputs, op.w.outputs);
  MovingPixel pixel{first.n, first.i, first.j};

  // The pixels of the next step, for dy and for x under the block's tap.
  const auto copy_step = [&](int stage) {
    unsigned char* a = shared + stage * Tile::kStageBytes;
    unsigned char* b = a + Tile::kABytes;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int tile_line = line + i * Tile::kLinesAtOnce;
      const bool exists = pixel.n < op.images;
      const T* dy_pixel = dy + pixel.n * op.dy_n + pixel.i * op.dy_h + pixel.j * op.dy_w;
#pragma unroll
      for (int panel = 0; panel < kRowPanels; ++panel) {
        copy_async<16>(panel_line_piece<T>(a, panel * kStepPixels + tile_line, piece), dy_pixel + panel * kLine<T>,
                       exists && first_row + panel * kLine<T> + channel < op.rows);
      }
#pragma unroll
      for (int panel = 0; panel < kColumnPanels; ++panel) {
        const int h = pixel.i * op.h.step + tap_h[panel], w = pixel.j * op.w.step + tap_w[panel];
        const bool inside = exists && x_channel[panel] != kNoChannel &&
                            static_cast<unsigned>(h) < static_cast<unsigned>(op.h.size) &&
                            static_cast<unsigned>(w) < static_cast<unsigned>(op.w.size);
        copy_async<16>(panel_line_piece<T>(b, panel * kStepPixels + tile_line, piece),
                       x + pixel.n * op.x_n + h * op.x_h + w * op.x_w + x_channel[panel], inside);
      }
      pixel.advance(by, op.h.outputs, op.w.outputs);
    }
  };

  const int steps = static_cast<int>(last_step - first_step);
#pragma unroll 1
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    if (stage < steps) copy_step(stage);
    copy_async_commit();
  }

  // The sums of dy: a thread adds 4 bytes' worth of rows over every kSlices-th pixel of a step.
  constexpr int kWordRows = 4 / sizeof(T);
  constexpr int kWords = Tile::kM / kWordRows, kSlices = Tile::kThreads / kWords;
  static_assert(Tile::kThreads % kWords == 0 && kStepPixels % kSlices == 0);
  const bool sums_dy = op.bias_sums != nullptr && first_column == 0;
  float dy_sums[kWordRows] = {};
  const int word_row = threadIdx.x % kWords * kWordRows, slice = threadIdx.x / kWords;

  typename Math::template Warp<Tile::kWarpM, Tile::kWarpN> warp;
  const int warp_index = threadIdx.x / 32;
  const int warp_m = warp_index / Tile::kWarpsN * Tile::kWarpM, warp_n = warp_index % Tile::kWarpsN * Tile::kWarpN;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<Tile::kStages - 2>();
    // The step's tiles are there for all, and all are done with the tiles that are overwritten next.
    __syncthreads();
    if (step + Tile::kStages - 1 < steps) copy_step((step + Tile::kStages - 1) % Tile::kStages);
    copy_async_commit();
    unsigned char* a = shared + step % Tile::kStages * Tile::kStageBytes;
    warp.template multiply<TileOrder::kPanels, TileOrder::kPanels>(a, warp_m, a + Tile::kABytes, warp_n);
    if (sums_dy) {
#pragma unroll 4
      for (int k = slice; k < kStepPixels; k += kSlices) {
        const unsigned char* at = panel_piece_of<T>(a, k, word_row) + word_row % kVector<T> * sizeof(T);
        if constexpr (sizeof(T) == 4) {
          dy_sums[0] += load<float>(at);
        } else {
          const float2 pair = unpack_pair(load<unsigned>(at), T());
          dy_sums[0] += pair.x;
          dy_sums[1] += pair.y;
        }
      }
    }
  }
  copy_async_wait<0>();

  const int64_t part_and_group = static_cast<int64_t>(blockIdx.z) * op.groups + group;
  float* sums = op.sums + part_and_group * taps * op.rows * op.columns;
  warp.visit([&](int m, int n, auto... values) {
    const int row = first_row + warp_m + m, column = first_column + warp_n + n;
    const int tap = column / op.columns;
    if (row >= op.rows || tap >= taps) return;
    float* to = sums + (static_cast<int64_t>(tap) * op.rows + row) * op.columns + (column - tap * op.columns);
    if constexpr (sizeof...(values) == 2) {
      store(to, make_float2(values...));  // of one tap: the channels of a group are a multiple of a vector
    } else {
      ((*to = values), ...);
    }
  });

  if (sums_dy) {
    auto* slices = reinterpret_cast<float*>(shared);  // [kSlices][kM]
    __syncthreads();                                  // the tiles are no longer read
#pragma unroll
    for (int i = 0; i < kWordRows; ++i) slices[slice * Tile::kM + word_row + i] = dy_sums[i];
    __syncthreads();
    for (int row = threadIdx.x; row < Tile::kM && first_row + row < op.rows; row += Tile::kThreads) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kSlices; ++i) sum += slices[i * Tile::kM + row];
      op.bias_sums[part_and_group * op.rows + first_row + row] = sum;
    }
  }
}

}  // namespace cnnext::cuda
