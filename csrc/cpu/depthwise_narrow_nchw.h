// How the NCHW kernels read planes whose rows fit a vector, or two rows of which do, for a 3x3 filter.
//
// What limits small planes is loads: one for each filter column and source row, each across two cache lines, as rows
// are not aligned. Here a source row is loaded once, and its three filter columns are picked from it in registers. The
// picks put zeros where a column lies outside the plane, so there is no test.
//
//   stride 1   a vector of outputs is a row, or two rows if both fit; it is picked from one load
//   stride 2   a row, picked from the two vectors of a source row; or two rows, picked from two source rows
//
// Needs instructions that pick any lanes of two vectors (Vec::kHasPick).
#pragma once

#include "depthwise_correlate_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Whether NarrowSource knows the filter and the stride.
CNNEXT_INLINE bool is_narrow_filter(const ConvParams& p) {
  return p.R == 3 && p.S == 3 && p.dilation_h == 1 && p.dilation_w == 1 && p.stride_h == p.stride_w && p.stride_h <= 2;
}

/// A source for a 3x3 filter without dilation. Vector i of outputs needs, for filter row r, the source vector
/// i * kStep + r, counted from the first row selected.
template <int kStride, bool kPairs, class T, class A>
class NarrowSource {
  using V = Vec<A>;
  using Lanes = typename V::Lanes;

 public:
  static constexpr int kStep = kStride * (kPairs ? 2 : 1);
  /// Vectors of outputs in registers, and rows of them.
  static constexpr int kVectors = kPairs ? 4 : 7, kRows = kPairs ? 2 * kVectors : kVectors;

  /// Rows of padding, at most.
  static constexpr int64_t kMaxPad = 2;

  /// Whether outputs `out_width` wide, rows out_stride apart, fit.
  static bool suits(const PlaneShape& shape, int64_t out_width, int64_t out_stride, int64_t pad_h) {
    constexpr int64_t kOut = kPairs ? V::kWidth / 2 : V::kWidth;
    constexpr int64_t kIn = kStride == 2 && !kPairs ? 2 * V::kWidth : kStride == 1 ? kOut : int64_t{V::kWidth};
    const bool together = !kPairs || (out_stride == out_width && (kStride == 2 || shape.row_stride == shape.width));
    return shape.count == 1 && pad_h >= 0 && pad_h <= kMaxPad && shape.width <= kIn && out_width <= kOut && together;
  }

  /// Column 0 of the outputs reads column -pad_w of the source for the filter's first column.
  NarrowSource(const PlaneShape& shape, int64_t out_width, int64_t pad_w)
      : shape_(shape),
        zeros_(shape.width),
        low_(low_bits(shape.width)),
        high_(low_bits(shape.width - V::kWidth)),
        pair_bits_(kStride == 1 && kPairs ? shape.height + 2 * kMargin : 0) {
    for (int s = 0; s < 3; ++s) {
      for (int lane = 0; lane < V::kWidth; ++lane) {
        const int64_t row = lane / out_width, column = lane % out_width * kStride + s - pad_w;
        const bool inside = row < (kPairs ? 2 : 1) && column >= 0 && column < shape.width;
        // The second row follows the first in its vector, or is the second vector.
        const int64_t start = row * (kStride == 1 ? shape.width : V::kWidth);
        picks_[s].set(lane, inside ? static_cast<int>(start + column) : -1);
        first_picks_[s].set(lane, inside && row == 0 ? static_cast<int>(column) : -1);
      }
    }
    for (int64_t row = -kMargin; kStride == 1 && kPairs && row < shape.height + kMargin; ++row) {
      pair_bits_[kMargin + row] = (is_inside(row) ? low_bits(shape.width) : 0) |
                                  (is_inside(row + 1) ? low_bits(shape.width) << shape.width : 0);
    }
  }

  void select_plane(const T* data) { data_ = data; }

  /// The first source row of vector 0.
  void select_row(int64_t first_row) { first_row_ = first_row; }

  /// values[s]: source vector h as filter column s needs it. kOneRow: of a pair only the first row.
  template <bool kOneRow = false>
  CNNEXT_INLINE void load(int64_t h, V (&values)[3]) const {
    const auto& picks = kOneRow ? first_picks_ : picks_;
    const int64_t row = first_row_ + h;
    if constexpr (kStride == 1 && kPairs) {
      const V both = V::load(data_ + row * shape_.width, Lanes(pair_bits_.data()[kMargin + row]));
      for (int s = 0; s < 3; ++s) values[s] = pick(both, picks[s]);
    } else if constexpr (kStride == 1) {
      const V low = V::load(row_at(row), low_);
      for (int s = 0; s < 3; ++s) values[s] = pick(low, picks[s]);
    } else {
      const V low = V::load(row_at(row), low_);
      const V high = kPairs ? V::load(row_at(row + 2), low_) : V::load(row_at(row) + V::kWidth, high_);
      for (int s = 0; s < 3; ++s) values[s] = pick(low, high, picks[s]);
    }
  }

 private:
  /// Rows above and below the plane that a block touches, at most: kMaxPad, and a block that begins in the last row.
  static constexpr int64_t kMargin = kMaxPad + kRows + 2;

  CNNEXT_INLINE bool is_inside(int64_t row) const {
    return static_cast<uint64_t>(row) < static_cast<uint64_t>(shape_.height);
  }
  CNNEXT_INLINE const T* row_at(int64_t row) const {
    return is_inside(row) ? data_ + row * shape_.row_stride : zeros_.data();
  }

  PlaneShape shape_;
  ZeroRow<T> zeros_;
  Lanes low_, high_;
  Scratch<uint32_t, 64> pair_bits_;  // lanes inside the plane, for the first rows of a pair from -kMargin on
  typename V::Pick picks_[3], first_picks_[3];
  const T* data_ = nullptr;
  int64_t first_row_ = 0;
};

/// Calls f(source vector as a constant, output vector as a constant, filter row as a constant) for all that meet,
/// source vectors ascending; `begin(source vector)` before the first of each.
template <int n, class Source, class Begin, class F>
CNNEXT_INLINE void for_narrow_rows(const Begin& begin, const F& f) {
#pragma GCC unroll 32
  for (int h = 0; h < (n - 1) * Source::kStep + 3; ++h) {
    if (h % Source::kStep > 2) continue;
    begin(h);
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
      const int i = (h - r) / Source::kStep;
      if (h >= r && (h - r) % Source::kStep == 0 && i < n) f(i, r);
    }
  }
}

/// acc[i] += the sum for output vector i.
template <int n, class Source, class A>
CNNEXT_INLINE void correlate_narrow(const Source& source, const Weights<A>& weights, Vec<A> (&acc)[n]) {
  using V = Vec<A>;
  V w[3][3], x[3];
  for (int i = 0; i < 9; ++i) {
    w[i / 3][i % 3] = V(weights.data[i % 3 * weights.column_stride + i / 3 * weights.row_stride]);
  }
  for_narrow_rows<n, Source>([&](int h) { source.load(h, x); },
                             [&](int i, int r) {
                               for (int s = 0; s < 3; ++s) acc[i] = fma(x[s], w[r][s], acc[i]);
                             });
}

/// sums[s][r] += the products of n vectors of dy with the source under them. kOneRow: n = 1, and it is the first row of
/// a pair alone. A zero in dy is not enough there, as the source may be infinite.
template <int n, bool kOneRow, class Source, class A>
CNNEXT_INLINE void accumulate_narrow_weights(const Source& source, const Vec<A> (&gradient)[n], Vec<A> (&sums)[3][3]) {
  Vec<A> x[3];
  for_narrow_rows<n, Source>([&](int h) { source.template load<kOneRow>(h, x); },
                             [&](int i, int r) {
                               for (int s = 0; s < 3; ++s) sums[s][r] = fma(x[s], gradient[i], sums[s][r]);
                             });
}

/// Computes `rows` rows of outputs: calls f(number of vectors as a constant, first row, rows that exist) for each
/// block.
template <class Source, class F>
CNNEXT_INLINE void for_narrow_blocks(int64_t rows, const F& f) {
  constexpr int kSmall = Source::kVectors / 2, kSmallRows = Source::kRows * kSmall / Source::kVectors;
  for (int64_t i = 0; i < rows; i += Source::kRows) {
    if (rows - i > kSmallRows) {
      f(std::integral_constant<int, Source::kVectors>{}, i, min(Source::kRows, rows - i));
    } else {
      f(std::integral_constant<int, kSmall>{}, i, rows - i);
    }
  }
}

/// Stores `rows` rows of outputs.
template <class Source, int n, class T, class A>
CNNEXT_INLINE void store_narrow(const Vec<A> (&acc)[n], T* out, int64_t out_stride, int64_t rows, int64_t width) {
  if constexpr (Source::kRows > Source::kVectors) {
    for (int i = 0; i < n; ++i) {
      const int64_t stored = min(2, rows - 2 * i);
      if (stored > 0) acc[i].store(out + 2 * i * width, static_cast<int>(stored * width));
    }
  } else {
    store_rows(acc, out, out_stride, rows, static_cast<int>(width));
  }
}

/// Calls f(NarrowSource) with the kind that suits a 3x3 filter; returns false if none does.
template <class T, class A, class F>
CNNEXT_INLINE bool with_narrow_source(const PlaneShape& shape, int64_t stride, int64_t out_width, int64_t out_stride,
                                      int64_t pad_h, int64_t pad_w, const F& f) {
  if constexpr (Vec<A>::kHasPick && kMaxFastFilter<T> >= 3) {
    const auto attempt = [&](auto step, auto pairs) {
      using Source = NarrowSource<step, pairs, T, A>;
      if (stride != step || !Source::suits(shape, out_width, out_stride, pad_h)) return false;
      Source source(shape, out_width, pad_w);
      f(source);
      return true;
    };
    constexpr std::integral_constant<int, 1> kOne;
    constexpr std::integral_constant<int, 2> kTwo;
    return attempt(kOne, std::true_type{}) || attempt(kOne, std::false_type{}) || attempt(kTwo, std::true_type{}) ||
           attempt(kTwo, std::false_type{});
  } else {
    return false;
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
