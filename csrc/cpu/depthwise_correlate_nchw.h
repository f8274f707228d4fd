// Rows of a depthwise correlation in NCHW: the inner loop of both forward and backward_input.
//
//   out[i, j] = epilogue(bias + sum over filter columns l, taps r of
//                        source[i * step + row_l + r, j * stride + column_l] * weights[l * R + r])
//
// A filter column is R taps one above the other. Taps that are not on consecutive rows are given as columns of one tap.
//
// Vectors run along the row (depthwise_source_nchw.h). kRows output rows are computed together: the (kRows - 1) * step
// + R source vectors of a filter column sit in registers and serve all of them, and so does each broadcast weight.
// Limit: 9 fused multiply-adds a vector of outputs for 3x3; memory for small filters on large planes.
#pragma once

#include "depthwise_source_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Output rows in registers. 7 divides the planes of MobileNet, and needs 32 registers.
constexpr int kRowBlock = Vec<float>::kWidth == 16 ? 7 : 4;
/// Rows of a band, the unit of parallel work within a plane.
constexpr int64_t kBandRows = 4 * kRowBlock;

/// The first tap of a filter column, at output (0, 0); row >= 0.
struct TapPosition {
  int64_t row, column;
};

/// The taps of a source for each vector of a row: strip v of `count` filter columns at taps[v * count].
template <class Source>
class StripTaps {
 public:
  /// Vector v of the `width` outputs starts at output v * kWidth; neighbours are `stride` source columns apart.
  StripTaps(const Source& source, const TapPosition* positions, int64_t count, int64_t width, int64_t stride,
            int lanes_per_strip)
      : count_(count), taps_(ceil_div(width, lanes_per_strip) * count) {
    int64_t i = 0;
    for (int64_t first = 0; first < width; first += lanes_per_strip) {
      const int lanes = static_cast<int>(min(lanes_per_strip, width - first));
      for (int64_t l = 0; l < count; ++l, ++i) {
        taps_[i] = source.tap(positions[l].row, first * stride + positions[l].column, lanes);
      }
    }
  }

  int64_t count() const { return count_; }
  const typename Source::Tap* strip(int64_t v) const { return taps_.data() + v * count_; }

 private:
  int64_t count_;
  Scratch<typename Source::Tap, 24> taps_;
};

/// The weight of tap r of filter column l is at data[l * column_stride + r * row_stride].
template <class A>
struct Weights {
  const A* data;
  int64_t column_stride, row_stride;
};

/// Filters as accumulators: where they are, if that is their type, else converted into `scratch`.
template <class T, class A>
CNNEXT_INLINE const A* load_filter(const T* w, int64_t count, A* scratch) {
  if constexpr (std::is_same_v<T, A>) {
    return w;
  } else {
    for (int64_t i = 0; i < count; ++i) scratch[i] = load_scalar<A>(w + i);
    return scratch;
  }
}

/// acc[i] += the sum for output row i over `count` filter columns. kR = 1 takes any step.
template <int kRows, int kR, int kStep, class Source, class A>
CNNEXT_INLINE void accumulate_columns(const Source& source, const typename Source::Tap* taps, int64_t count,
                                      const Weights<A>& weights, int64_t step, Vec<A> (&acc)[kRows]) {
  using V = Vec<A>;
  constexpr int kSourceRows = kR == 1 ? kRows : (kRows - 1) * kStep + kR;
  for (int64_t l = 0; l < count; ++l) {
    V values[kSourceRows];
    source.load(taps[l], kR == 1 ? step : 1, values);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const V w(weights.data[l * weights.column_stride + r * weights.row_stride]);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) acc[i] = fma(values[kR == 1 ? i : i * kStep + r], w, acc[i]);
    }
  }
}

/// Stores the first `rows` of acc, `lanes` lanes each.
template <int kRows, class T, class A>
CNNEXT_INLINE void store_rows(const Vec<A> (&acc)[kRows], T* out, int64_t out_stride, int64_t rows, int lanes) {
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) break;
    if (lanes == Vec<A>::kWidth) {
      acc[i].store(out + i * out_stride);
    } else {
      acc[i].store(out + i * out_stride, lanes);
    }
  }
}

/// Walks the bands of the planes of a tensor, without a division for each.
class BandIterator {
 public:
  BandIterator(int64_t index, int64_t bands, int64_t channels)
      : bands_(bands),
        channels_(channels),
        band(index % bands),
        channel(index / bands % channels),
        n(index / bands / channels) {}

  CNNEXT_INLINE void next() {
    if (++band < bands_) return;
    band = 0;
    if (++channel < channels_) return;
    channel = 0;
    ++n;
  }

  /// The same band of the plane after this one.
  CNNEXT_INLINE BandIterator next_plane() const {
    BandIterator it = *this;
    it.band = bands_ - 1;
    it.next();
    return it;
  }

 private:
  int64_t bands_, channels_;

 public:
  int64_t band, channel, n;
};

/// Calls f(number of rows as a constant, first row, rows that exist) until `rows` are done.
template <class F>
CNNEXT_INLINE void for_row_blocks(int64_t rows, const F& f) {
  constexpr int kSmall = kRowBlock / 2;
  for (int64_t i = 0; i < rows; i += kRowBlock) {
    if (rows - i > kSmall) {
      f(std::integral_constant<int, kRowBlock>{}, i, min(kRowBlock, rows - i));
    } else {
      f(std::integral_constant<int, kSmall>{}, i, rows - i);
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
