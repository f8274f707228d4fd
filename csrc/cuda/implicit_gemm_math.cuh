// The arithmetic of a matrix product's tile: what a warp does with the lines of both factors in shared memory.
//
// All have the same shape. `Warp<kM, kN>` owns kM x kN outputs in float32 registers; `multiply` adds the products of
// one step, kLine<T> reduced elements; `visit` calls f(m, n, value) for every output, or f(m, n, value, next) for every
// pair of neighbours where the lanes own pairs.
//
// How a factor lies in its tile:
//   kLines   a line a row of A (a column of B), the reduced elements along it;
//   kPanels  a line a reduced element, the rows of A (the columns of B) along it; a panel of kLine<T> lines holds the
//            first kLine<T> rows, the next panel the next ones.
#pragma once

#include "implicit_gemm_tile.cuh"
#include "matrix_instructions.h"

namespace cnnext::cuda {

enum class TileOrder { kLines, kPanels };

/// Address of piece `piece` of line `line` of a tile in panels. What reads 16-bit elements is ldmatrix, as in lines.
/// But the lanes that read TF32's fragments read two pieces of four lines at a time: those are to be two banks' groups
/// apart.
template <class T>
__device__ __forceinline__ unsigned char* panel_line_piece(unsigned char* tile, int line, int piece) {
  if constexpr (sizeof(T) == 2) return piece_of(tile, line, piece);
  return tile + line * kLineBytes + ((piece ^ (2 * line & 7)) * 16);
}

/// Address of the 16 bytes that hold reduced element `k` and rows from `row` on.
template <class T>
__device__ __forceinline__ unsigned char* panel_piece_of(unsigned char* tile, int k, int row) {
  return panel_line_piece<T>(tile + row / kLine<T> * kLine<T> * kLineBytes, k, row % kLine<T> / kVector<T>);
}

/// One float of a tile in panels.
__device__ __forceinline__ float panel_element(unsigned char* tile, int k, int row) {
  return load<float>(panel_piece_of<float>(tile, k, row) + row % 4 * 4);
}

/// The sums of a warp as the mma instructions leave them: a lane owns pairs of neighbours.
template <int kM, int kN>
struct MmaSums {
  static_assert(kM % 16 == 0 && kN % 16 == 0);
  float sums[kM / 16][kN / 8][4] = {};

  template <class F>
  __device__ __forceinline__ void visit(F f) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          f(16 * i + 8 * half + lane / 4, 8 * j + lane % 4 * 2, sums[i][j][2 * half], sums[i][j][2 * half + 1]);
        }
      }
    }
  }
};

/// 16-bit elements on tensor cores.
template <class T>
struct TensorCoreMath {
  template <int kM, int kN>
  struct Warp : MmaSums<kM, kN> {
    using MmaSums<kM, kN>::sums;

    template <TileOrder kA, TileOrder kB>
    __device__ __forceinline__ void multiply(unsigned char* a, int first_m, unsigned char* b, int first_n) {
      const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
#pragma unroll
      for (int step = 0; step < kLine<T> / 16; ++step) {
        unsigned a_fragment[kM / 16][4], b_fragment[kN / 16][4];
#pragma unroll
        for (int i = 0; i < kM / 16; ++i) {
          const int m = first_m + 16 * i + matrix % 2 * 8;
          if constexpr (kA == TileOrder::kLines) {
            load_matrices(a_fragment[i], piece_of(a, m + row, 2 * step + matrix / 2));
          } else {
            load_matrices_transposed(a_fragment[i], panel_piece_of<T>(a, 16 * step + matrix / 2 * 8 + row, m));
          }
        }
#pragma unroll
        for (int j = 0; j < kN / 16; ++j) {
          const int n = first_n + 16 * j + matrix / 2 * 8;
          if constexpr (kB == TileOrder::kLines) {
            load_matrices(b_fragment[j], piece_of(b, n + row, 2 * step + matrix % 2));
          } else {
            load_matrices_transposed(b_fragment[j], panel_piece_of<T>(b, 16 * step + matrix % 2 * 8 + row, n));
          }
        }
#pragma unroll
        for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
          for (int j = 0; j < kN / 8; ++j) {
            multiply_16x8x16(sums[i][j], a_fragment[i], b_fragment[j / 2][j % 2 * 2], b_fragment[j / 2][j % 2 * 2 + 1],
                             T());
          }
        }
      }
    }
  };
};

/// float32 rounded to TF32, on tensor cores.
struct Tf32Math {
  template <int kM, int kN>
  struct Warp : MmaSums<kM, kN> {
    using MmaSums<kM, kN>::sums;

    template <TileOrder kA, TileOrder kB>
    __device__ __forceinline__ void multiply(unsigned char* a, int first_m, unsigned char* b, int first_n) {
      const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
#pragma unroll
      for (int step = 0; step < kLine<float> / 8; ++step) {
        unsigned a_fragment[kM / 16][4], b_fragment[kN / 16][4];
#pragma unroll
        for (int i = 0; i < kM / 16; ++i) {
          const int m = first_m + 16 * i;
          if constexpr (kA == TileOrder::kLines) {
            // As 32-bit elements an 8x8 matrix of 16-bit ones is 8x4: a lane gets the element (lane / 4, lane % 4).
            load_matrices(a_fragment[i], piece_of(a, m + matrix % 2 * 8 + row, 2 * step + matrix / 2));
          } else {
            // ldmatrix transposes 16-bit elements only.
#pragma unroll
            for (int part = 0; part < 4; ++part) {
              a_fragment[i][part] =
                  bit_cast<unsigned>(panel_element(a, 8 * step + part / 2 * 4 + lane % 4, m + part % 2 * 8 + lane / 4));
            }
          }
#pragma unroll
          for (unsigned& word : a_fragment[i]) word = round_to_tf32(bit_cast<float>(word));
        }
#pragma unroll
        for (int j = 0; j < kN / 16; ++j) {
          const int n = first_n + 16 * j;
          if constexpr (kB == TileOrder::kLines) {
            load_matrices(b_fragment[j], piece_of(b, n + matrix / 2 * 8 + row, 2 * step + matrix % 2));
          } else {
#pragma unroll
            for (int part = 0; part < 4; ++part) {
              b_fragment[j][part] =
                  bit_cast<unsigned>(panel_element(b, 8 * step + part % 2 * 4 + lane % 4, n + part / 2 * 8 + lane / 4));
            }
          }
#pragma unroll
          for (unsigned& word : b_fragment[j]) word = round_to_tf32(bit_cast<float>(word));
        }
#pragma unroll
        for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
          for (int j = 0; j < kN / 8; ++j) {
            multiply_16x8x8_tf32(sums[i][j], a_fragment[i], b_fragment[j / 2][j % 2 * 2],
                                 b_fragment[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
    }
  };
};

/// float32 on the FP32 pipes. A lane owns kM / 4 rows, 4 apart, and kN / 8 columns, 8 apart: 8 lanes that read
/// different lines read neighbouring ones, which is free of bank conflicts.
struct FmaMath {
  template <int kM, int kN>
  struct Warp {
    static_assert(kM % 4 == 0 && kN % 8 == 0);
    float sums[kM / 4][kN / 8] = {};

    __device__ __forceinline__ static int row(int i) { return 4 * i + threadIdx.x % 32 / 8; }
    __device__ __forceinline__ static int column(int j) { return 8 * j + threadIdx.x % 8; }

    /// Reduced elements 4 * piece and the next three of one row of a factor.
    template <TileOrder kOrder>
    __device__ __forceinline__ static void load_four(unsigned char* tile, int row, int piece, float (&values)[4]) {
      if constexpr (kOrder == TileOrder::kLines) {
        unpack<float>(load<uint4>(piece_of(tile, row, piece)), values);
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k] = panel_element(tile, 4 * piece + k, row);
      }
    }

    template <TileOrder kA, TileOrder kB>
    __device__ __forceinline__ void multiply(unsigned char* a, int first_m, unsigned char* b, int first_n) {
      // Not unrolled: the body holds 4 * kM * kN / 32 multiplications already.
#pragma unroll 1
      for (int piece = 0; piece < kLinePieces; ++piece) {
        float a_values[kM / 4][4], b_values[4];
#pragma unroll
        for (int i = 0; i < kM / 4; ++i) load_four<kA>(a, first_m + row(i), piece, a_values[i]);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
          load_four<kB>(b, first_n + column(j), piece, b_values);
#pragma unroll
          for (int i = 0; i < kM / 4; ++i) {
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[i][j] = fmaf(a_values[i][k], b_values[k], sums[i][j]);
          }
        }
      }
    }

    template <class F>
    __device__ __forceinline__ void visit(F f) {
#pragma unroll
      for (int i = 0; i < kM / 4; ++i) {
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) f(row(i), column(j), sums[i][j]);
      }
    }
  };
};

}  // namespace cnnext::cuda
