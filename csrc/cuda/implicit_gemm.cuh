// Convolution as a matrix product: the kernel behind grouped_forward_nhwc and grouped_backward_input_nhwc.
//
//   output[m][n] = activation(bias[n] + sum over taps t, channels k of  source[m, t][k] * filter[t][k][n])
//
// M = pixels of the output, N = output channels of a group, and the reduced dimension runs over the taps and the
// channels of the group, in steps of a line (128 bytes), which may hold several taps of few channels. Nothing is
// unrolled in memory: source[m, t] is the address of a pixel's channels, worked out when it is copied ("implicit").
//
// A block owns kBlockM x kBlockN outputs; a warp kWarpM x kWarpN of them. All threads copy the tiles of a step to
// shared memory with cp.async, kStages steps ahead of the warps that multiply; a tap that lies outside the image
// arrives as zeros. The result goes through shared memory once more, so that it is written 16 bytes a thread, whole
// lines a warp.
//
// Where there are too few outputs for the device, several blocks share a tile: each takes a part of the steps and
// leaves its sums in float32, which grouped_reduce_parts.cu adds up.
//
// Assumes: channels_last, source, filter and output 16-byte aligned, as are their strides and the channels of a group
// on both sides; the last group may end within a vector, whose other elements are zeros in the source.
#pragma once

#include "element.h"
#include "implicit_gemm_epilogue.cuh"
#include "implicit_gemm_math.cuh"
#include "implicit_gemm_tile.cuh"
#include "portability.h"

namespace cnnext::cuda {

/// Compile-time shape of a block.
template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kStages_>
struct GemmTile {
  static constexpr int kM = kM_, kN = kN_, kStages = kStages_;
  static constexpr int kWarpM = kM / kWarpsM_, kWarpN = kN / kWarpsN_;
  static constexpr int kWarpsN = kWarpsN_;
  static constexpr int kThreads = 32 * kWarpsM_ * kWarpsN_;
  static constexpr int kABytes = kM * kLineBytes;  // of a step
  static constexpr int kBBytes = kN * kLineBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kLinesAtOnce = kThreads / kLinePieces;  // that one copy of all threads covers
  static_assert(kM % kLinesAtOnce == 0 && kN % kLinesAtOnce == 0);

  /// Floats from row to row of the result in shared memory: the padding puts the 4 rows that half a warp writes at a
  /// time into different banks.
  static constexpr int kResultPitch = kN + 8;
  static constexpr int kResultBytes = kM * kResultPitch * static_cast<int>(sizeof(float));
  static constexpr int kSharedBytes = kStages * kStageBytes;
};

/// Copies a step of the source: each thread its pieces of kM / kLinesAtOnce pixels.
///
/// The pieces of a pixel are counted through all taps, `pieces` of them to a tap, and a step takes the next 8. With
/// kLines `pieces` is what the channels fill, so that a step may hold the end of one tap and the next ones; with
/// kPanels it is rounded up to whole steps, since a tile of the filter is of one tap.
template <class T, class Tile>
struct SourceLoader {
  static constexpr int kRows = Tile::kM / Tile::kLinesAtOnce;
  const T* pixel[kRows];  // of the first tap, which may lie outside the image
  int h[kRows], w[kRows];
  int line, piece;
  int tap_h = 0, tap_w = 0, tap_piece;  // of the next step

  __device__ __forceinline__ SourceLoader(const GemmOperands& op, const TapAxis& axis_h, const TapAxis& axis_w,
                                          int64_t first_m, int64_t pixels, int group, int pieces, int first_step)
      : line(threadIdx.x / kLinePieces), piece(threadIdx.x % kLinePieces), tap_piece(piece + first_step * kLinePieces) {
    const T* base = static_cast<const T*>(op.source) + static_cast<int64_t>(group) * op.depth;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t m = first_m + line + i * Tile::kLinesAtOnce;
      const Pixel p = pixel_of(m < pixels ? m : 0, axis_h.outputs, axis_w.outputs);
      h[i] = m < pixels ? p.i * axis_h.step + axis_h.first : kOutside;
      w[i] = p.j * axis_w.step + axis_w.first;
      pixel[i] = base + p.n * op.source_n + h[i] * op.source_h + w[i] * op.source_w;
    }
    carry(axis_w.taps, pieces);
  }

  /// Copies the next step.
  __device__ __forceinline__ void copy(const GemmOperands& op, unsigned char* tile, const TapAxis& axis_h,
                                       const TapAxis& axis_w, int pieces) {
    const int dh = tap_h * axis_h.tap_step, dw = tap_w * axis_w.tap_step;
    const bool exists = tap_h < axis_h.taps && tap_piece * kVector<T> < op.depth;
    const int64_t offset = dh * op.source_h + dw * op.source_w + tap_piece * kVector<T>;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool inside = static_cast<unsigned>(h[i] + dh) < static_cast<unsigned>(axis_h.size) &&
                          static_cast<unsigned>(w[i] + dw) < static_cast<unsigned>(axis_w.size);
      copy_async<16>(piece_of(tile, line + i * Tile::kLinesAtOnce, piece), pixel[i] + offset, inside && exists);
    }
    tap_piece += kLinePieces;
    carry(axis_w.taps, pieces);
  }

 private:
  static constexpr int kOutside = -(1 << 30);  // no tap brings it back into an image

  __device__ __forceinline__ void carry(int taps_w, int pieces) {
    while (tap_piece >= pieces) {
      tap_piece -= pieces;
      if (++tap_w == taps_w) tap_w = 0, ++tap_h;
    }
  }
};

/// Copies a step of the filter, whose lines, a line an output channel, hold the taps one after the other.
template <class T, class Tile>
__device__ __forceinline__ void copy_filter_lines(const GemmOperands& op, unsigned char* tile, const T* filter,
                                                  int first_n, int step, int all_pieces) {
  const int line = threadIdx.x / kLinePieces, piece = threadIdx.x % kLinePieces;
  const int of_line = step * kLinePieces + piece;
#pragma unroll
  for (int i = 0; i < Tile::kN / Tile::kLinesAtOnce; ++i) {
    const int n = first_n + line + i * Tile::kLinesAtOnce;
    copy_async<16>(piece_of(tile, line + i * Tile::kLinesAtOnce, piece),
                   filter + n * op.filter_row + of_line * kVector<T>, n < op.columns && of_line < all_pieces);
  }
}

/// Copies panels of a line's width along n of one tap; a panel has a line a channel.
template <class T, class Tile>
__device__ __forceinline__ void copy_filter_panels(const GemmOperands& op, unsigned char* tile, const T* tap,
                                                   int first_n, int channel) {
  const int line = threadIdx.x / kLinePieces, piece = threadIdx.x % kLinePieces;
  constexpr int kLines = kLine<T> * (Tile::kN / kLine<T>);
#pragma unroll
  for (int i = 0; i < (kLines + Tile::kLinesAtOnce - 1) / Tile::kLinesAtOnce; ++i) {
    const int tile_line = line + i * Tile::kLinesAtOnce;
    if (kLines % Tile::kLinesAtOnce != 0 && tile_line >= kLines) break;
    const int k = channel + tile_line % kLine<T>;
    const int n = first_n + tile_line / kLine<T> * kLine<T> + piece * kVector<T>;
    copy_async<16>(panel_line_piece<T>(tile, tile_line, piece), tap + k * op.filter_row + n,
                   k < op.depth && n < op.columns);
  }
}

/// Grid: x = column tiles (fastest, so that neighbours share the source in L2) x pixel tiles, y = groups, z = classes
/// (fastest) x parts.
template <class T, class Math, class Tile, TileOrder kFilterOrder, int kMinBlocks>
__global__ void __launch_bounds__(Tile::kThreads, kMinBlocks) implicit_gemm_kernel(GemmOperands op, GemmAxes axes) {
  static_assert(Tile::kResultBytes <= Tile::kSharedBytes);
  const int part = blockIdx.z / (axes.classes_h * axes.classes_w);
  const int class_of_block = blockIdx.z - part * axes.classes_h * axes.classes_w;
  const TapAxis axis_h = axes.h[class_of_block / axes.classes_w];
  const TapAxis axis_w = axes.w[class_of_block % axes.classes_w];
  const int column_tiles = (op.columns + Tile::kN - 1) / Tile::kN;
  const int first_n = static_cast<int>(blockIdx.x % column_tiles) * Tile::kN;
  const int64_t first_m = static_cast<int64_t>(blockIdx.x / column_tiles) * Tile::kM;
  const int64_t pixels = static_cast<int64_t>(op.images) * axis_h.outputs * axis_w.outputs;
  if (first_m >= pixels) return;  // of a class with fewer pixels than the largest
  const int group = blockIdx.y;

  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  constexpr bool kFlat = kFilterOrder == TileOrder::kLines;
  const int depth_pieces = (op.depth + kVector<T> - 1) / kVector<T>;
  const int pieces = kFlat ? depth_pieces : (depth_pieces + kLinePieces - 1) / kLinePieces * kLinePieces;
  const int all_pieces = axis_h.taps * axis_w.taps * pieces;
  const int all_steps = (all_pieces + kLinePieces - 1) / kLinePieces;
  const int first_step = part * all_steps / op.parts, steps = (part + 1) * all_steps / op.parts - first_step;
  SourceLoader<T, Tile> loader(op, axis_h, axis_w, first_m, pixels, group, pieces, first_step);
  const T* filter = static_cast<const T*>(op.filter) + group * op.filter_group + axis_h.filter_first * op.filter_h +
                    axis_w.filter_first * op.filter_w;

  // The tap of the filter's next step, and its first channel there.
  const int tap_steps = pieces / kLinePieces, first_tap = kFlat ? 0 : first_step / tap_steps;
  int channel = (first_step - first_tap * tap_steps) * kLine<T>;
  int tap_h = first_tap / max(axis_w.taps, 1), tap_w = first_tap - tap_h * axis_w.taps;
  const auto copy_step = [&](int step, int stage) {
    unsigned char* a = shared + stage * Tile::kStageBytes;
    loader.copy(op, a, axis_h, axis_w, pieces);
    if constexpr (kFlat) {
      copy_filter_lines<T, Tile>(op, a + Tile::kABytes, filter, first_n, first_step + step, all_pieces);
    } else {
      const T* tap = filter + tap_h * axis_h.filter_step * op.filter_h + tap_w * axis_w.filter_step * op.filter_w;
      copy_filter_panels<T, Tile>(op, a + Tile::kABytes, tap, first_n, channel);
      channel += kLine<T>;
      if (channel >= op.depth) {
        channel = 0;
        if (++tap_w == axis_w.taps) tap_w = 0, ++tap_h;
      }
    }
  };

#pragma unroll 1
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    if (stage < steps) copy_step(stage, stage);
    copy_async_commit();
  }

  typename Math::template Warp<Tile::kWarpM, Tile::kWarpN> warp;
  const int warp_index = threadIdx.x / 32;
  const int warp_m = warp_index / Tile::kWarpsN * Tile::kWarpM, warp_n = warp_index % Tile::kWarpsN * Tile::kWarpN;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<Tile::kStages - 2>();
    // The step's tiles are there for all, and all are done with the tiles that are overwritten next.
    __syncthreads();
    const int next = step + Tile::kStages - 1;
    if (next < steps) copy_step(next, next % Tile::kStages);
    copy_async_commit();
    unsigned char* a = shared + step % Tile::kStages * Tile::kStageBytes;
    warp.template multiply<TileOrder::kLines, kFilterOrder>(a, warp_m, a + Tile::kABytes, warp_n);
  }
  copy_async_wait<0>();
  __syncthreads();

  const int64_t first_channel = static_cast<int64_t>(group) * op.columns + first_n;
  store_result<T, Tile>(
      op, shared, first_channel, op.columns - first_n,
      [&](auto f) { warp.visit([&](int m, int n, auto... values) { f(warp_m + m, warp_n + n, values...); }); },
      [&](int row) {
        const int64_t m = first_m + row;
        if (m >= pixels) return kNoPixel;
        const Pixel p = pixel_of(m, axis_h.outputs, axis_w.outputs);
        return output_offset(op, axis_h, axis_w, p);
      },
      part);
}

}  // namespace cnnext::cuda
