// Copies of rows of an NCHW plane in a form that suits vectors along a row.
//
// A kernel that walks rows needs, for tap (r, s), the source at column q * stride + s * dilation - pad for 16 neighbouring
// q: unaligned, outside the plane at both ends, and strided when stride > 1. Here the rows in use (a band of the plane, in
// the first-level cache) are copied once as accumulators, with zeros for the padding and the columns of each residue
// modulo the stride gathered in a run of their own:
//
//   packed[row * pitch + phase * phase_length + j] = source[first_row + row, first_column + j * phases + phase]
//
// so that every tap becomes one fixed offset, and 16 neighbouring outputs are 16 neighbouring elements.
#pragma once

#include "depthwise_common.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Splits 2n contiguous elements into those at even and at odd places.
template <class A, class T>
CNNEXT_INLINE void unzip_to(const T* from, int64_t n, A* even, A* odd) {
  constexpr int kWidth = Vec<A>::kWidth;
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    Vec<A> a = Vec<A>::load(from + 2 * j), b = Vec<A>::load(from + 2 * j + kWidth);
    unzip(a, b);
    a.store(even + j);
    b.store(odd + j);
  }
  if (j < n) {
    const int pairs = static_cast<int>(n - j);
    Vec<A> a = Vec<A>::load(from + 2 * j, static_cast<int>(min(2 * pairs, kWidth)));
    Vec<A> b = Vec<A>::load(from + 2 * j + kWidth, static_cast<int>(max(2 * pairs - kWidth, 0)));
    unzip(a, b);
    a.store(even + j, pairs);
    b.store(odd + j, pairs);
  }
}

/// A band of packed rows: its geometry, and the function that fills it.
struct PackedRows {
  int64_t phases;        // residues of columns
  int64_t phase_length;  // elements of a phase
  int64_t first_column;  // source column of element 0, may be negative
  int64_t pitch;         // from row to row

  PackedRows(int64_t column_stride, int64_t first, int64_t length)
      : phases(column_stride), phase_length(length), first_column(first), pitch(column_stride * length) {}

  /// Elements to allocate for `rows`; a kernel may read a vector that begins inside, and packing writes whole vectors.
  int64_t size(int64_t rows) const { return rows * pitch + 2 * kSlack; }

  /// Where source column `column`, the tap of output 0, is.
  int64_t offset(int64_t column) const {
    const int64_t distance = column - first_column;
    return distance % phases * phase_length + distance / phases;
  }

  /// Copies rows first_row, ... of a height x width plane whose rows are row_stride apart.
  template <class A, class T>
  void fill(A* packed, const T* plane, int64_t row_stride, int64_t height, int64_t width, int64_t first_row,
            int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i, packed += pitch) {
      const int64_t h = first_row + i;
      if (h < 0 || h >= height) {
        for (int64_t j = 0; j < pitch; j += Vec<A>::kWidth) Vec<A>::zero().store(packed + j);
      } else if (phases == 1) {
        fill_row(packed, plane + h * row_stride, width);
      } else if (phases == 2) {
        fill_row_halved(packed, plane + h * row_stride, width);
      } else {
        fill_row_strided(packed, plane + h * row_stride, width);
      }
    }
  }

 private:
  static constexpr int64_t kSlack = 16;

  // NOTE: whole vectors are written, so zeros and data spill to the right of where they belong, and what is written later
  // (to the right of it) repairs that.
  template <class A, class T>
  void fill_row(A* to, const T* row, int64_t width) const {
    constexpr int kWidth = Vec<A>::kWidth;
    const int64_t begin = min(max(0, -first_column), phase_length);
    const int64_t end = max(begin, min(phase_length, width - first_column));
    for (int64_t j = 0; j < begin; j += kWidth) Vec<A>::zero().store(to + j);
    const T* from = row + first_column;
    int64_t j = begin;
    for (; j + kWidth <= end; j += kWidth) Vec<A>::load(from + j).store(to + j);
    if (j < end) {
      Vec<A>::load(from + j, static_cast<int>(end - j)).store(to + j);
      j += kWidth;
    }
    for (; j < phase_length; j += kWidth) Vec<A>::zero().store(to + j);
  }

  template <class A, class T>
  void fill_row_halved(A* to, const T* row, int64_t width) const {
    A *even = to, *odd = to + phase_length;
    // Pairs [begin, end) lie inside the row; a pair cut by an edge, or outside, is done element by element.
    const int64_t begin = min(first_column < 0 ? (1 - first_column) / 2 : 0, phase_length);
    const int64_t inside = width - first_column < 0 ? 0 : (width - first_column) / 2;
    const int64_t end = max(begin, min(phase_length, inside));
    const auto element = [&](int64_t column) {
      return column >= 0 && column < width ? load_scalar<A>(row + column) : A(0);
    };
    const auto edge_pair = [&](int64_t j) {
      even[j] = element(first_column + 2 * j);
      odd[j] = element(first_column + 2 * j + 1);
    };
    for (int64_t j = 0; j < begin; ++j) edge_pair(j);
    unzip_to(row + first_column + 2 * begin, end - begin, even + begin, odd + begin);
    for (int64_t j = end; j < phase_length; ++j) edge_pair(j);
  }

  template <class A, class T>
  void fill_row_strided(A* to, const T* row, int64_t width) const {
    for (int64_t phase = 0; phase < phases; ++phase, to += phase_length) {
      for (int64_t j = 0; j < phase_length; ++j) {
        const int64_t column = first_column + j * phases + phase;
        to[j] = column >= 0 && column < width ? load_scalar<A>(row + column) : A(0);
      }
    }
  }
};

/// Elements of packed rows that a band aims at (24 KB of float32: most of a first-level cache), and that the stack holds.
constexpr int64_t kBandElements = 6 * 1024;
constexpr int64_t kBandScratch = 8 * 1024;

/// Rows of output in a band, when `span` + (rows - 1) * step source rows of `pitch` elements serve it.
CNNEXT_INLINE int64_t band_rows(int64_t pitch, int64_t span, int64_t step, int64_t total) {
  const int64_t source_rows = kBandElements / pitch;
  const int64_t rows = source_rows > span ? (source_rows - span) / step + 1 : 1;
  // At least as many as the span, so that rows packed twice, by two bands, stay a minority.
  return min(total, max(rows, max(4, span)));
}

}  // namespace cnnext::cpu::CNNEXT_ISA
