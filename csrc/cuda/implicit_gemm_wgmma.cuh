// Convolution as a matrix product on sm_90a: what implicit_gemm.cuh computes, with the copies and the products of
// Hopper. The same grid, operands, axes and epilogue; only how a block gets to its sums differs.
//
// A block owns kM x kN outputs: 128 pixels, 128 or 256 channels. It has two warpgroups that multiply, 64 pixels each,
// and one warp, of which one lane starts all copies. Shared memory holds kStages slots, each with the tiles of a step:
// 64 reduced elements, a line of 128 bytes, of one tap. Two barriers a slot say what may be done with it:
//
//   full   the copying lane arrives and says how many bytes will come; the multiplying warps wait for them;
//   empty  each multiplying warp arrives when its products have read the slot; the copying lane waits for all of them.
//
// The tensor memory accelerator walks the pixels of the source itself ("im2col" mode): a tile is the 128 pixels that a
// tap meets from a given output on, row after row and image after image, with zeros where the tap lies outside. The
// filter's tile has a line an output channel (kLines), or, for the input gradient, a line a reduced element and panels
// of 64 columns (kPanels), as in implicit_gemm_math.cuh.
//
// Assumes: what insert_wgmma in grouped_plan.cpp checks. 16-bit elements, channels_last, everything 16-byte aligned;
// a tap's reduced channels fill lines, unless there is one group: past the last channel both tiles are zeros.
#pragma once

#include "implicit_gemm_epilogue.cuh"
#include "implicit_gemm_math.cuh"
#include "implicit_gemm_tile.cuh"
#include "wgmma_instructions.h"

namespace cnnext::cuda {

/// The tensor maps of a launch: the filter, and for each class of output positions the source.
struct GemmTensorMaps {
  struct Source {
    TensorMap map;
    int lower_h, lower_w;  // the source position that the first output's nearest tap meets
  };
  TensorMap filter;
  Source source[kMaxAxes * kMaxAxes];
};

/// Compile-time shape of a block.
template <int kN_, int kStages_, int kMinBlocks_>
struct WgmmaTile {
  static constexpr int kM = 128, kN = kN_, kStages = kStages_, kMinBlocks = kMinBlocks_;
  static constexpr int kMultiplyingWarps = kM / 16;
  static constexpr int kThreads = 32 * (kMultiplyingWarps + 1);
  static constexpr int kABytes = kM * kLineBytes;  // of a step
  static constexpr int kBBytes = kN * kLineBytes;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kPanelBytes = kTensorMapLine * kLineBytes;
  static_assert(kStageBytes % kSwizzleAlignment == 0 && kPanelBytes % kSwizzleAlignment == 0);

  static constexpr int kResultPitch = kN + 8;  // as in GemmTile
  static constexpr int kResultBytes = kM * kResultPitch * static_cast<int>(sizeof(float));
  static constexpr int kTileBytes = kStages * kStageBytes > kResultBytes ? kStages * kStageBytes : kResultBytes;
  static constexpr int kSharedBytes = kTileBytes + kSwizzleAlignment;  // as much as may be lost to alignment
};

/// The taps of a class one after the other, each in steps of a line of channels.
struct TapWalk {
  int channel = 0, h = 0, w = 0;

  __device__ __forceinline__ void next(int depth, int taps_w) {
    channel += kTensorMapLine;
    if (channel < depth) return;
    channel = 0;
    if (++w == taps_w) w = 0, ++h;
  }
};

/// The work of the copying lane.
template <class Tile, TileOrder kFilterOrder>
__device__ __forceinline__ void copy_steps(const GemmOperands& op, const GemmTensorMaps& maps,
                                           const GemmTensorMaps::Source& source, const TapAxis& axis_h,
                                           const TapAxis& axis_w, unsigned char* slots, uint64_t* full, uint64_t* empty,
                                           int64_t first_m, int first_n, int group, int steps) {
  const Pixel first = pixel_of(first_m, axis_h.outputs, axis_w.outputs);
  const int h = first.i * axis_h.step + source.lower_h, w = first.j * axis_w.step + source.lower_w;
  const int filter_taps_w = static_cast<int>(op.filter_h / op.filter_w);
  TapWalk walk;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int slot = step % Tile::kStages;
    mbarrier_wait(&empty[slot], step / Tile::kStages % 2 ^ 1);
    unsigned char* a = slots + slot * Tile::kStageBytes;
    unsigned char* b = a + Tile::kABytes;
    mbarrier_arrive_expect(&full[slot], Tile::kStageBytes);
    copy_pixels(a, source.map, &full[slot], group * op.depth + walk.channel, w, h, first.n,
                axis_w.first + walk.w * axis_w.tap_step - source.lower_w,
                axis_h.first + walk.h * axis_h.tap_step - source.lower_h);
    const int filter_tap = (axis_h.filter_first + walk.h * axis_h.filter_step) * filter_taps_w + axis_w.filter_first +
                           walk.w * axis_w.filter_step;
    if constexpr (kFilterOrder == TileOrder::kLines) {
      copy_tile(b, maps.filter, &full[slot], walk.channel, filter_tap, group * op.columns + first_n);
    } else {
#pragma unroll
      for (int panel = 0; panel < Tile::kN / kTensorMapLine; ++panel) {
        copy_tile(b + panel * Tile::kPanelBytes, maps.filter, &full[slot], first_n + panel * kTensorMapLine, filter_tap,
                  group * op.depth + walk.channel);
      }
    }
    walk.next(op.depth, axis_w.taps);
  }
}

/// The work of a multiplying warpgroup: the sums of 64 pixels, from line `first_line` of the source's tiles on.
template <class T, class Tile, TileOrder kFilterOrder>
__device__ __forceinline__ void multiply_steps(float (&sums)[Tile::kN / 2], unsigned char* slots, uint64_t* full,
                                               uint64_t* empty, int first_line, int steps) {
  constexpr bool kPanels = kFilterOrder == TileOrder::kPanels;
  constexpr int kEightLines = 8 * kLineBytes;
  const unsigned first_slot = shared_address(slots);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int slot = step % Tile::kStages;
    mbarrier_wait(&full[slot], step / Tile::kStages % 2);
    const unsigned tiles = first_slot + slot * Tile::kStageBytes;
    const uint64_t a = matrix_descriptor(tiles + first_line * kLineBytes, 0, kEightLines);
    const uint64_t b = matrix_descriptor(tiles + Tile::kABytes, kPanels ? Tile::kPanelBytes : 0, kEightLines);
    wgmma_fence();
#pragma unroll
    for (int part = 0; part < kLine<T> / kWgmmaDepth; ++part) {
      constexpr int kPartOfLine = kWgmmaDepth * static_cast<int>(sizeof(T));
      wgmma_multiply<kPanels>(sums, advance(a, part * kPartOfLine),
                              advance(b, part * (kPanels ? kWgmmaDepth * kLineBytes : kPartOfLine)), T());
    }
    wgmma_commit();
    // While these products run, the ones before them are finished, so their slot is free.
    wgmma_wait<1>();
    if (step > 0 && threadIdx.x % 32 == 0) mbarrier_arrive(&empty[(step - 1) % Tile::kStages]);
  }
  wgmma_wait<0>();
  keep_sums_behind_wait(sums);
}

template <class T, class Tile, TileOrder kFilterOrder>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kMinBlocks)
    implicit_gemm_wgmma_kernel(GemmOperands op, GemmAxes axes, const __grid_constant__ GemmTensorMaps maps) {
#ifdef CNNEXT_HAS_WGMMA
  const TapAxis axis_h = axes.h[axes.classes_w == 1 ? blockIdx.z : blockIdx.z / axes.classes_w];
  const TapAxis axis_w = axes.w[axes.classes_w == 1 ? 0 : blockIdx.z % axes.classes_w];
  const GemmTensorMaps::Source& source = maps.source[blockIdx.z];
  const int column_tiles = (op.columns + Tile::kN - 1) / Tile::kN;
  const int first_n = static_cast<int>(blockIdx.x % column_tiles) * Tile::kN;
  const int64_t first_m = static_cast<int64_t>(blockIdx.x / column_tiles) * Tile::kM;
  const int64_t pixels = static_cast<int64_t>(op.images) * axis_h.outputs * axis_w.outputs;
  if (first_m >= pixels) return;  // of a class with fewer pixels than the largest
  const int group = blockIdx.y;
  const int steps = axis_h.taps * axis_w.taps * ((op.depth + kTensorMapLine - 1) / kTensorMapLine);

  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, full, Tile::kStages);
  CNNEXT_STATIC_SHARED(uint64_t, empty, Tile::kStages);
  unsigned char* slots = shared + (-shared_address(shared) & (kSwizzleAlignment - 1));
  const int warp = threadIdx.x / 32;
  const bool copies = warp == Tile::kMultiplyingWarps;
  if (copies && threadIdx.x % 32 == 0) {
    prefetch_tensor_map(maps.filter);
    prefetch_tensor_map(source.map);
    for (int i = 0; i < Tile::kStages; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], Tile::kMultiplyingWarps);
    }
    fence_async_proxy();
  }
  __syncthreads();

  float sums[Tile::kN / 2] = {};
  if (!copies) {
    multiply_steps<T, Tile, kFilterOrder>(sums, slots, full, empty, warp / 4 * 64, steps);
  } else if (threadIdx.x % 32 == 0) {
    copy_steps<Tile, kFilterOrder>(op, maps, source, axis_h, axis_w, slots, full, empty, first_m, first_n, group,
                                   steps);
  }
  __syncwarp();  // the hardware wants whole warps at a block's barrier; one lane comes from its copies
  __syncthreads();

  const int64_t first_channel = static_cast<int64_t>(group) * op.columns + first_n;
  store_result<T, Tile>(
      op, slots, first_channel, op.columns - first_n,
      [&](auto f) {
        if (copies) return;
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < Tile::kN / 2; i += 2) {
          f(16 * warp + i / 2 % 2 * 8 + lane / 4, i / 4 * 8 + lane % 4 * 2, sums[i], sums[i + 1]);
        }
      },
      [&](int row) {
        const int64_t m = first_m + row;
        if (m >= pixels) return kNoPixel;
        return output_offset(op, axis_h, axis_w, pixel_of(m, axis_h.outputs, axis_w.outputs));
      });
#else
  __trap();  // no planner chooses it here
#endif
}

}  // namespace cnnext::cuda
