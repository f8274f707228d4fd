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

/// Elements of a cache line.
template <class T>
constexpr int64_t kLine = 64 / sizeof(T);

/// Prefetches what a kernel will read, or write, a little later: the same rows of the next plane or, in a large plane,
/// rows further down. The hardware does not see them coming: it follows a stream to the end of its page, and a block of
/// rows is as many streams as rows.
template <class T>
class RowsAhead {
 public:
  RowsAhead(int64_t height, int64_t width, int64_t row_stride)
      : row_stride_(row_stride),
        distance_(min(height, ceil_div(kBytes / sizeof(T), width))),
        turn_(height - distance_),
        worthwhile_(width > 2 * kLine<T>) {}

  /// Whether it gains more than it costs. Not where rows are short: a block of them is then one stream.
  CNNEXT_INLINE bool worthwhile() const { return worthwhile_; }

  /// The plane in use, and the one after it.
  CNNEXT_INLINE void select_plane(const T* plane, const T* next) {
    plane_ = plane + distance_ * row_stride_;
    next_ = next - turn_ * row_stride_;
  }

  /// What to prefetch when the rows from `row` on are in use.
  CNNEXT_INLINE const T* at(int64_t row) const { return (row < turn_ ? plane_ : next_) + row * row_stride_; }

  /// Asks for kRows rows of kLines cache lines, `from` on.
  template <int kRows, int kLines>
  CNNEXT_INLINE void prefetch(const T* from) const {
#pragma GCC unroll 32
    for (int h = 0; h < kRows; ++h, from += row_stride_) {
      for (int l = 0; l < kLines; ++l) __builtin_prefetch(from + l * kLine<T>, 0, 2);
    }
  }

 private:
  static constexpr int64_t kBytes = 64 * 1024;  // a plane of 112 x 112 floats, and a part of any second-level cache

  int64_t row_stride_, distance_, turn_;
  bool worthwhile_;
  const T *plane_ = nullptr, *next_ = nullptr;
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
    int lanes;
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

  /// Lanes from `lanes` on read as zero too: x may be infinite there, so that no zero in the other factor would do.
  Tap tap(int64_t row, int64_t column, int lanes) const {
    constexpr int kWidth = V::kWidth;
    const uint32_t all = low_bits(kWidth);
    const int64_t end = min(shape_.width - column, (lanes - 1) * (kStride == 0 ? 1 : kStride) + 1);
    const uint32_t low = low_bits(end) & ~low_bits(-column) & all;
    const uint32_t high = kStride == 2 ? low_bits(end - kWidth) & ~low_bits(-column - kWidth) & all : 0;
    return {rows_ + row, column, Lanes(low), Lanes(high), low == all, high != 0, lanes};
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
        values[i] = i < tap.lanes && column >= 0 && column < shape_.width ? load_scalar<A>(from + i * stride_) : A(0);
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

/// A row of `width` zeros.
template <class T>
class ZeroRow {
 public:
  explicit ZeroRow(int64_t width) : row_(width) {
    for (int64_t i = 0; i < width; ++i) row_[i] = T{};
  }
  const T* data() const { return row_.data(); }

 private:
  Scratch<T, 512> row_;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
