// Tiles of the two factors of a matrix product in shared memory, as the tensor cores want them.
//
// A tile is made of lines of 128 bytes: 8 pieces of 16 bytes, the unit of cp.async and of ldmatrix. Piece c of line r
// lies at piece c ^ (r % 8), so that 8 lines' pieces of one column lie in 8 different groups of 4 banks: ldmatrix,
// which reads a column of 8 pieces at a time, and the copies, which write lines, are both free of bank conflicts.
#pragma once

#include "element.h"
#include "portability.h"
#include "tap_axis.h"

namespace cnnext::cuda {

constexpr int kLineBytes = 128;
constexpr int kLinePieces = 8;

/// Elements of T in a line.
template <class T>
constexpr int kLine = kLineBytes / static_cast<int>(sizeof(T));

/// Address of piece `piece` (0..7) of line `line` of a tile.
__device__ __forceinline__ unsigned char* piece_of(unsigned char* tile, int line, int piece) {
  return tile + line * kLineBytes + ((piece ^ (line & 7)) * 16);
}

/// Pixel m of the outputs of one class: n, i, j with j fastest.
struct Pixel {
  int n, i, j;
};

__device__ __forceinline__ Pixel pixel_of(int64_t m, int rows, int columns) {
  const int64_t image = static_cast<int64_t>(rows) * columns;
  const int n = static_cast<int>(m / image);
  const int rest = static_cast<int>(m - n * image);
  return {n, rest / columns, rest % columns};
}

}  // namespace cnnext::cuda
