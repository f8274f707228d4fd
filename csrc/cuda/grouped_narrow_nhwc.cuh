// Grouped convolution with 4, 8, 16 or 32 channels a group on both sides, 16-bit, channels_last: forward and, with the
// roles of input and output exchanged, input gradient.
//
// A group this narrow fills neither a 128-byte line nor a tensor core's operand, and there is little arithmetic for
// each byte. So a block takes 64 channels, several groups, of 8 x 16 output pixels; it copies the source pixels under
// them once, a line a pixel, and every tap reads its 16x16 operands from there with ldmatrix, whose row addresses are
// the addresses of pixels. Of the 64 x 64 filter matrix of a tap only the groups' squares on the diagonal exist and are
// multiplied; groups of 4 go in pairs, as a square of 8 of which half is zero.
//
// A warp owns two rows of 16 pixels and all 64 channels. Several blocks an SM hide the time of the copies. The limit is
// memory: source and output once, plus the halo (1.4 times the source at 3x3, mostly from L2).
//
// Assumes: source and output 16-byte aligned, as are their strides; as many output as input channels in a group.
#pragma once

#include "grouped_narrow_tile.h"
#include "implicit_gemm_epilogue.cuh"
#include "implicit_gemm_math.cuh"
#include "implicit_gemm_tile.cuh"

namespace cnnext::cuda {

/// The tiles of an image's outputs of one class, and the source pixels that a tile needs.
struct NarrowGrid {
  int tiles_h, tiles_w;  // of the largest class
  int halo_h, halo_w;    // source pixels of a tile, of the class that needs most
  int bundles;           // of 64 channels
};

/// `halo_of` on the device.
__device__ __forceinline__ int source_extent(const TapAxis& axis, int outputs) {
  return (outputs - 1) * axis.step + max(axis.taps - 1, 0) * abs(axis.tap_step) + 1;
}

/// The lowest source position of output i.
__device__ __forceinline__ int lowest_source(const TapAxis& axis, int i) {
  return i * axis.step + axis.first + (axis.tap_step < 0 ? (axis.taps - 1) * axis.tap_step : 0);
}

/// Copies the filter to shared memory as 16-byte pieces [tap][square's column / 8][channel]: piece (tap, j, channel)
/// holds 8 neighbouring elements of the filter's line of `channel`. Lines are output channels of the convolution,
/// neighbours are input channels.
template <class T, int kWidth>
__device__ __forceinline__ void copy_narrow_filter(const GemmOperands& op, unsigned char* to, const TapAxis& axis_h,
                                                   const TapAxis& axis_w, int first_channel, int all_channels) {
  constexpr int kPieces = kSquare<kWidth> / 8;
  const int count = axis_h.taps * axis_w.taps * kPieces * NarrowTile::kN;
  const T* filter =
      static_cast<const T*>(op.filter) + axis_h.filter_first * op.filter_h + axis_w.filter_first * op.filter_w;
  for (int index = threadIdx.x; index < count; index += NarrowTile::kThreads) {
    const int channel = index % NarrowTile::kN, piece = index / NarrowTile::kN % kPieces;
    const int tap = index / NarrowTile::kN / kPieces;
    const bool exists = first_channel + channel < all_channels;
    const T* from = filter + (first_channel + channel) * op.filter_row +
                    tap / axis_w.taps * axis_h.filter_step * op.filter_h +
                    tap % axis_w.taps * axis_w.filter_step * op.filter_w + 8 * piece;
    if constexpr (kWidth >= 8) {
      copy_async<16>(to + 16 * index, from, exists);
    } else {
      // The first group of a pair has its 4 elements in the low half of the piece, the second in the high half.
      const bool low = channel % 8 < 4;
      copy_async<8>(to + 16 * index, from, exists && low);
      copy_async<8>(to + 16 * index + 8, from, exists && !low);
    }
  }
}

/// Grid: x = bundles (fastest), tiles of the width, tiles of the height, images; z = classes (see GemmAxes).
/// kFilterOrder: kLines if a line of the filter is a column of the product (forward), kPanels if it is a reduced
/// element.
template <class T, int kWidth, TileOrder kFilterOrder>
__global__ void __launch_bounds__(NarrowTile::kThreads, kWidth < 8 ? 2 : 3)
    grouped_narrow_nhwc_kernel(GemmOperands op, GemmAxes axes, NarrowGrid grid, int all_channels) {
  using Tile = NarrowTile;
  constexpr int kSide = kSquare<kWidth>;
  const TapAxis axis_h = axes.h[blockIdx.z / axes.classes_w];
  const TapAxis axis_w = axes.w[blockIdx.z % axes.classes_w];
  int64_t index = blockIdx.x;
  const int first_channel = static_cast<int>(index % grid.bundles) * Tile::kN;
  index /= grid.bundles;
  const int first_j = static_cast<int>(index % grid.tiles_w) * Tile::kW;
  index /= grid.tiles_w;
  const int first_i = static_cast<int>(index % grid.tiles_h) * Tile::kH;
  const int n = static_cast<int>(index / grid.tiles_h);
  if (first_i >= axis_h.outputs || first_j >= axis_w.outputs) return;  // of a class with fewer pixels than the largest

  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  unsigned char* const filter = shared + grid.halo_h * grid.halo_w * kLineBytes;
  const int halo_h = source_extent(axis_h, Tile::kH), halo_w = source_extent(axis_w, Tile::kW);
  const int lowest_h = lowest_source(axis_h, first_i), lowest_w = lowest_source(axis_w, first_j);
  // Neighbouring outputs read lines `step` apart: with that in the swizzle they still lie in different banks.
  const int step_w = axis_w.step;
  const auto source_piece = [&](int row, int column, int piece) {
    return shared + (row * halo_w + column) * kLineBytes + ((piece ^ (column / step_w & 7)) * 16);
  };

  const T* source = static_cast<const T*>(op.source) + n * op.source_n + first_channel;
  for (int i = threadIdx.x; i < halo_h * halo_w * kLinePieces; i += Tile::kThreads) {
    const int piece = i % kLinePieces, column = i / kLinePieces % halo_w, row = i / kLinePieces / halo_w;
    const int h = lowest_h + row, w = lowest_w + column;
    const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(axis_h.size) &&
                        static_cast<unsigned>(w) < static_cast<unsigned>(axis_w.size) &&
                        first_channel + piece * kVector<T> < all_channels;
    copy_async<16>(source_piece(row, column, piece), source + h * op.source_h + w * op.source_w + piece * kVector<T>,
                   inside);
  }
  copy_narrow_filter<T, kWidth>(op, filter, axis_h, axis_w, first_channel, all_channels);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  const int lane = threadIdx.x % 32, matrix = lane / 8, row_of_matrix = lane % 8;
  const int first_row = threadIdx.x / 32 * Tile::kWarpRows;
  float sums[Tile::kWarpRows][Tile::kN / 8][4] = {};
  // NOTE: the zeros in the squares of two groups of 4 are not enough to keep the groups apart: zero times an infinite
  // value of the other group is no zero. So each group is multiplied alone, and has sums of its own.
  float second_sums[kWidth < 8 ? Tile::kWarpRows : 1][kWidth < 8 ? Tile::kN / 8 : 1][4] = {};
  const unsigned of_first_group = lane % 4 < 2 ? 0xffffffffu : 0u;  // a lane's reduced channels, and its columns
  int tap = 0;
#pragma unroll 1
  for (int tap_h = 0; tap_h < axis_h.taps; ++tap_h) {
    const int down = axis_h.first + first_i * axis_h.step + tap_h * axis_h.tap_step - lowest_h;
#pragma unroll 1
    for (int tap_w = 0; tap_w < axis_w.taps; ++tap_w, ++tap) {
      const int across = axis_w.first + first_j * axis_w.step + tap_w * axis_w.tap_step - lowest_w;
      const unsigned char* tap_filter = filter + tap * kNarrowTapBytes<kWidth>;
#pragma unroll
      for (int square = 0; square < Tile::kN / kSide; ++square) {
        // Each 16 reduced channels of the square against its columns; a square of 8 shares its 16 with the next one.
        constexpr int kDepths = kSide < 16 ? 1 : kSide / 16;
        if (kSide == 8 && square % 2 == 1) continue;
#pragma unroll
        for (int depth = 0; depth < kDepths; ++depth) {
          const int channel = square * kSide + 16 * depth;
          unsigned a[Tile::kWarpRows][4];
#pragma unroll
          for (int i = 0; i < Tile::kWarpRows; ++i) {
            const int row = (first_row + i) * axis_h.step + down;
            const int column = (matrix % 2 * 8 + row_of_matrix) * step_w + across;
            load_matrices(a[i], source_piece(row, column, channel / 8 + matrix / 2));
          }
          // Four pieces' columns at a time: 8 x 8 matrices (reduced 8, columns 8) as the squares have them.
          unsigned b[4];
          if constexpr (kSide == 8) {
            // Matrices 0 and 1 are the filters of this square and of the next; 2 and 3 repeat them.
            const int line = channel + matrix % 2 * 8 + row_of_matrix;
            if constexpr (kFilterOrder == TileOrder::kLines) {
              load_matrices(b, tap_filter + 16 * line);
            } else {
              load_matrices_transposed(b, tap_filter + 16 * line);
            }
#pragma unroll
            for (int i = 0; i < Tile::kWarpRows; ++i) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const int j = channel / 8 + half;
                const unsigned a0 = a[i][2 * half], a1 = a[i][2 * half + 1];
                if constexpr (kWidth < 8) {
                  multiply_16x8x8(sums[i][j], a0 & of_first_group, a1 & of_first_group, b[half], T());
                  multiply_16x8x8(second_sums[i][j], a0 & ~of_first_group, a1 & ~of_first_group, b[half], T());
                } else {
                  multiply_16x8x8(sums[i][j], a0, a1, b[half], T());
                }
              }
            }
          } else {
#pragma unroll
            for (int columns = 0; columns < kSide; columns += 16) {
              // Matrices: columns 0-7 with reduced 0-7, 8-15; then columns 8-15 with the same.
              const int column = columns + matrix / 2 * 8, reduced = 16 * depth + matrix % 2 * 8;
              if constexpr (kFilterOrder == TileOrder::kLines) {
                const int line = square * kSide + column + row_of_matrix;
                load_matrices(b, tap_filter + 16 * (reduced / 8 * Tile::kN + line));
              } else {
                const int line = square * kSide + reduced + row_of_matrix;
                load_matrices_transposed(b, tap_filter + 16 * (column / 8 * Tile::kN + line));
              }
#pragma unroll
              for (int i = 0; i < Tile::kWarpRows; ++i) {
                const int j = (square * kSide + columns) / 8;
                multiply_16x8x16(sums[i][j], a[i], b[0], b[1], T());
                multiply_16x8x16(sums[i][j + 1], a[i], b[2], b[3], T());
              }
            }
          }
        }
      }
    }
  }
  __syncthreads();

  store_result<T, Tile>(
      op, shared, first_channel, all_channels - first_channel,
      [&](auto f) {
#pragma unroll
        for (int i = 0; i < Tile::kWarpRows; ++i) {
#pragma unroll
          for (int j = 0; j < Tile::kN / 8; ++j) {
            const int m = (first_row + i) * Tile::kW + lane / 4, column = 8 * j + lane % 4 * 2;
            const auto sum = [&](int r) {
              if constexpr (kWidth < 8) return of_first_group != 0 ? sums[i][j][r] : second_sums[i][j][r];
              return sums[i][j][r];
            };
            f(m, column, sum(0), sum(1));
            f(m + 8, column, sum(2), sum(3));
          }
        }
      },
      [&](int m) {
        const Pixel p{n, first_i + m / Tile::kW, first_j + m % Tile::kW};
        return p.i < axis_h.outputs && p.j < axis_w.outputs ? output_offset(op, axis_h, axis_w, p) : kNoPixel;
      });
}

}  // namespace cnnext::cuda
