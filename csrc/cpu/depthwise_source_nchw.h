// How the NCHW kernels read a plane: vectors along a row, for one filter tap at a time.
//
// A vector of outputs q, q + 1, ... needs, for tap (r, s), the source row p * stride_h + r * dilation_h - pad_h at
// columns q * stride_w + s * dilation_w - pad_w, .... Lanes outside the plane read as zero: a load of a set of lanes
// does that without touching memory, so no copy with padding is made. A source knows three things: the plane; the rows
// in use, chosen for each block of output rows (one outside the plane is a row of zeros); and the taps, with their
// lanes, which are the same for every plane and are worked out once.
#pragma once

#include "depthwise_common.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// The shape of the planes a kernel reads. `count` planes, `plane_stride` apart, are read together.
struct PlaneShape {
  int64_t height, width;
  int64_t row_stride;
  int64_t count = 1, plane_stride = 0;
};

/// Lanes at columns kStride apart; kStride = 0 takes any stride, one element at a time.
template <int kStride, class T, class A>
class RowSource {
  using V = Vec<A>;
  using Lanes = typename V::Lanes;

 public:
  /// Where one tap reads: lane i of row h at rows[h] + column + i * stride. The same for every plane.
  struct Tap {
    const T* const* rows;
    int64_t column;
    Lanes low, high;  // for elements column ..., and for the next vector of elements
    bool all, any_high;
  };

  /// `rows` holds a table for each plane, table_size apart: entry h is source row first_row + h, or zeros.
  RowSource(const PlaneShape& shape, const T** rows, int64_t table_size, const T* zeros, int64_t stride)
      : shape_(shape), rows_(rows), table_size_(table_size), zeros_(zeros), stride_(stride) {}

  void select_plane(const T* data) { data_ = data; }

  void select_rows(int64_t first_row, int64_t count) {
    const int64_t begin = min(max(0, -first_row), count), end = max(begin, min(count, shape_.height - first_row));
    for (int64_t j = 0; j < shape_.count; ++j) {
      const T** table = rows_ + j * table_size_;
      const T* row = data_ + j * shape_.plane_stride + (first_row + begin) * shape_.row_stride;
      for (int64_t h = 0; h < begin; ++h) table[h] = zeros_;
      for (int64_t h = begin; h < end; ++h, row += shape_.row_stride) table[h] = row;
      for (int64_t h = end; h < count; ++h) table[h] = zeros_;
    }
  }

  /// At most `lanes` lanes are needed.
  Tap tap(int64_t row, int64_t column, int lanes) const {
    constexpr int kWidth = V::kWidth;
    const uint32_t all = low_bits(kWidth);
    const int64_t end = min(shape_.width - column, (lanes - 1) * (kStride == 0 ? 1 : kStride) + 1);
    const uint32_t low = low_bits(end) & ~low_bits(-column) & all;
    const uint32_t high = kStride == 2 ? low_bits(end - kWidth) & ~low_bits(-column - kWidth) & all : 0;
    return {rows_ + row, column, Lanes(low), Lanes(high), low == all, high != 0};
  }

  /// values[i] = row i * step of the tap.
  template <int n>
  CNNEXT_INLINE void load(const Tap& tap, int64_t step, V (&values)[n]) const {
#pragma GCC unroll 32
    for (int i = 0; i < n; ++i) values[i] = load_row(tap, tap.rows[i * step] + tap.column);
  }

 private:
  CNNEXT_INLINE V load_row(const Tap& tap, const T* from) const {
    if constexpr (kStride == 0) {
      A values[V::kWidth];
      for (int i = 0; i < V::kWidth; ++i) {
        const int64_t column = tap.column + i * stride_;
        values[i] = column >= 0 && column < shape_.width ? load_scalar<A>(from + i * stride_) : A(0);
      }
      return V::load(values);
    } else {
      const V low = !V::kMasksAreFree && tap.all ? V::load(from) : V::load(from, tap.low);
      if constexpr (kStride == 1) return low;
      return even_lanes(low, tap.any_high ? V::load(from + V::kWidth, tap.high) : V::zero());
    }
  }

  PlaneShape shape_;
  const T** rows_;
  int64_t table_size_;
  const T* zeros_;
  int64_t stride_;
  const T* data_ = nullptr;
};

/// Planes so narrow that two neighbouring rows fit a vector: lanes 0 .. width read row h, lanes width .. 2 * width row
/// h + 1. Assumes contiguous rows, so that both come with one load, and as many columns in the output as in the plane.
template <class T, class A>
class RowPairSource {
  using V = Vec<A>;
  using Lanes = typename V::Lanes;

 public:
  struct Tap {
    int64_t offset;  // of lane 0 in the first row selected
    int64_t row;
    uint32_t bits;
  };

  static bool suits(const PlaneShape& shape, int64_t out_width, int64_t out_stride) {
    return shape.count == 1 && shape.row_stride == shape.width && out_width == shape.width && out_stride == out_width &&
           2 * shape.width <= V::kWidth && 3 * shape.width > V::kWidth;
  }

  explicit RowPairSource(const PlaneShape& shape) : shape_(shape) {}

  void select_plane(const T* data) { data_ = data; }

  void select_rows(int64_t first_row, int64_t count) {
    first_ = data_ + first_row * shape_.row_stride;
    if (first_row == first_row_ && count == count_) return;
    first_row_ = first_row;
    count_ = count;
    const uint32_t row_bits = low_bits(shape_.width);
    for (int64_t h = 0; h < count; ++h) {
      const int64_t row = first_row + h;
      bits_[h] = (row >= 0 && row < shape_.height ? row_bits : 0) |
                 (row >= -1 && row + 1 < shape_.height ? row_bits << shape_.width : 0);
    }
  }

  /// With `lanes` = width only the first row is read.
  Tap tap(int64_t row, int64_t column, int lanes) const {
    const int64_t width = shape_.width;
    const uint32_t bits = low_bits(min(width - column, width)) & ~low_bits(-column);
    return {row * shape_.row_stride + column, row, lanes > width ? bits | bits << width : bits};
  }

  template <int n>
  CNNEXT_INLINE void load(const Tap& tap, int64_t, V (&values)[n]) const {
    const T* from = first_ + tap.offset;
#pragma GCC unroll 32
    for (int i = 0; i < n; ++i, from += shape_.row_stride) {
      values[i] = V::load(from, Lanes(tap.bits & bits_[tap.row + i]));
    }
  }

 private:
  PlaneShape shape_;
  const T* data_ = nullptr;
  const T* first_ = nullptr;
  int64_t first_row_ = 0, count_ = -1;
  uint32_t bits_[32];
};

/// A row of `width` zeros.
template <class T>
class ZeroRow {
 public:
  explicit ZeroRow(int64_t width) : row_(width) {
    for (int64_t i = 0; i < width; ++i) row_[i] = T{};
  }
  const T* data() { return row_.data(); }

 private:
  Scratch<T, 512> row_;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
