// Rows of a depthwise correlation in NHWC: the inner loop of both forward and backward_input.
//
//   out[o, i, c] = epilogue(bias[c] + sum over source rows r, column taps l of
//                           source_r[i * step + column_l, c] * weights_r,o[l, c])
//
// Taps whose column lies outside the source contribute nothing: that is the padding.
//   forward          i = q, step = stride_w, column_s = s * dilation_w - pad_w
//   backward_input   one call for each class of columns w modulo stride_w, where every w has the same taps; step = 1
//
// Vectors run over channels; kTile neighbouring pixels of kOutRows rows are held in registers, so that a loaded source
// pixel serves several outputs and a loaded weight serves kTile of them. Taps at consecutive columns (any undilated
// filter) have a kernel for each count in use; the rest share one that loads a pixel for each tap. Limit: memory for
// small filters; 9 fused multiply-adds a vector of outputs for 3x3.
#pragma once

#include "depthwise_common.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Pixels of a row held in registers. MobileNet's rows (7, 14, ... 112) are multiples of 7, and 7 accumulators leave
/// room for the sources of a 3-wide filter in 16 registers.
constexpr int kTile = 7;

/// Output rows computed together, o = 0 .. kOutRows: a source row that two of them need is then loaded once. Two need
/// 32 registers.
constexpr int kOutRows = Vec<float>::kWidth == 16 ? 2 : 1;

/// One source row, and its weights for each output row, a place in a packed filter; null where output row o does not
/// use it.
template <class T, class A>
struct SourceRow {
  const T* pixels;
  const A* weights[kOutRows];
};

/// The source rows of up to kOutRows output rows.
template <class T, class A>
class SourceRows {
 public:
  explicit SourceRows(int64_t capacity) : rows_(capacity), used_(0) {}

  void clear() { used_ = 0; }

  /// NOTE: for each output row, pixels must be added in ascending order, output row by output row. If a later output
  /// row begins and ends no earlier than the one before, its order of summation is the same with and without a partner.
  void add(int out_row, const T* pixels, const A* weights) {
    for (int64_t i = 0; out_row > 0 && i < used_; ++i) {
      if (rows_[i].pixels == pixels) {
        rows_[i].weights[out_row] = weights;
        return;
      }
    }
    SourceRow<T, A>& row = rows_[used_++];
    row.pixels = pixels;
    for (int o = 0; o < kOutRows; ++o) row.weights[o] = o == out_row ? weights : nullptr;
  }

  /// Moves all weights `count` elements further on.
  void advance_weights(int64_t count) {
    for (int64_t i = 0; i < used_; ++i) {
      for (int o = 0; o < kOutRows; ++o) {
        if (rows_[i].weights[o]) rows_[i].weights[o] += count;
      }
    }
  }

  const SourceRow<T, A>* data() const { return rows_.data(); }
  int64_t size() const { return used_; }

 private:
  Scratch<SourceRow<T, A>, 32> rows_;
  int64_t used_;
};

/// A tap of a filter row: the source column that output pixel 0 reads, and the tap's place in the row.
struct ColumnTap {
  int64_t column;
  int64_t s;
};

/// The filter (K x R x S) as accumulators, vector by vector of channels, so that the weights of a vector are
/// neighbours: tap r, s of the channels c, c + 1, ... of a vector lies at row(j, r)[c * taps + s * kWidth], where m = K
/// / C and j is the index within the multiplier, k = c * m + j. Lanes beyond C are readable.
template <class A>
class PackedFilter {
 public:
  static constexpr int kWidth = Vec<A>::kWidth;

  template <class T>
  PackedFilter(const ConvParams& p, const T* w)
      : S_(p.S), taps_(p.R * p.S), group_(ceil_div(p.C, kWidth) * kWidth * taps_), packed_(group_ * (p.K / p.C)) {
    const int64_t multiplier = p.K / p.C;
    A* to = packed_.data();
    for (int64_t j = 0; j < multiplier; ++j) {
      for (int64_t c = 0; c < p.C; c += kWidth) {
        const T* from = w + (c * multiplier + j) * taps_;
        const int64_t lanes = min(kWidth, p.C - c);
        for (int64_t tap = 0; tap < taps_; ++tap, to += kWidth) {
          for (int64_t i = 0; i < lanes; ++i) to[i] = load_scalar<A>(from + i * multiplier * taps_ + tap);
        }
      }
    }
  }

  const A* row(int64_t j, int64_t r) const { return packed_.data() + j * group_ + r * S_ * kWidth; }
  int64_t taps() const { return taps_; }
  /// From row(j, r) to row(j + 1, r).
  int64_t group() const { return group_; }

 private:
  int64_t S_, taps_, group_;
  Scratch<A, 4608> packed_;  // on the stack: 3x3 with 512 channels
};

/// Whether an image and its output are too large for a second-level cache of usual size. Then the rows to come are
/// prefetched beside the arithmetic, as the hardware does not see so many short streams coming; else that is a loss.
template <class T>
bool is_prefetch_worthwhile(const ConvParams& p) {
  constexpr int64_t kBytes = 1024 * 1024;
  return static_cast<int64_t>(sizeof(T)) * (p.H * p.W * p.C + p.P * p.Q * p.K) > kBytes;
}

/// Rows that will be read, or written, by the next call: `count` of them, `stride` apart.
template <class T>
struct RowsToCome {
  const T* pixels = nullptr;
  int64_t count = 0, stride = 0;

  /// Asks for `channel` of n pixels from `first` on.
  CNNEXT_INLINE void prefetch(int64_t first, int64_t n, int64_t pixel_stride, int64_t channel) const {
#pragma GCC unroll 1
    for (int64_t i = 0; i < count; ++i) {
      const T* from = pixels + i * stride + first * pixel_stride + channel;
#pragma GCC unroll 1
      for (int64_t t = 0; t < n; ++t, from += pixel_stride) __builtin_prefetch(from, 0, 2);
    }
  }
};

/// The rows to compute. Offsets and strides in elements; channels are contiguous everywhere.
template <class T, class A>
struct CorrelateRows {
  const SourceRow<T, A>* rows;
  int64_t num_rows;
  const ColumnTap* taps;  // columns ascending
  int64_t num_taps;
  int64_t filter_taps;  // PackedFilter::taps
  int64_t source_width;
  int64_t source_stride;  // from pixel to pixel
  int64_t step;
  T* out[kOutRows];
  int64_t out_rows;  // 1 .. kOutRows
  int64_t out_stride;
  int64_t num_pixels;
  int64_t channels;
  const A* bias;  // null, or `channels` values readable up to a full vector
  Epilogue<A> epilogue;
  RowsToCome<T> source_to_come, out_to_come;
};

/// Loads or stores all lanes without a mask when the caller knows, or sees, that there is no tail.
template <bool kChecked, class A, class T>
CNNEXT_INLINE Vec<A> load_lanes(const T* p, int lanes) {
  if (kChecked && lanes < Vec<A>::kWidth) return Vec<A>::load(p, lanes);
  return Vec<A>::load(p);
}

template <bool kChecked, class A, class T>
CNNEXT_INLINE void store_lanes(Vec<A> v, T* p, int lanes) {
  if (kChecked && lanes < Vec<A>::kWidth) {
    v.store(p, lanes);
  } else {
    v.store(p);
  }
}

/// Finishes and stores pixels [first, first + n) of one vector of channels.
template <bool kChecked, class T, class A>
CNNEXT_INLINE void store_tile(Vec<A> (&acc)[kOutRows * kTile], const CorrelateRows<T, A>& row, int64_t first, int n,
                              int64_t channel, int lanes) {
  row.epilogue.apply(acc);
#pragma GCC unroll 2
  for (int o = 0; o < kOutRows; ++o) {
    if (o >= row.out_rows) break;
    T* out = row.out[o] + first * row.out_stride + channel;
#pragma GCC unroll 8
    for (int t = 0; t < kTile; ++t) {
      if (!kChecked || t < n) store_lanes<kChecked, A>(acc[o * kTile + t], out + t * row.out_stride, lanes);
    }
  }
}

/// Pixels [first, first + n) of one vector of channels, for kTaps consecutive columns and a step of kStep.
/// kChecked: n may be less than kTile, `lanes` less than a vector, and columns may lie outside the source. Else kLeft
/// columns lie outside at the left and kRight at the right.
template <int kTaps, int kStep, bool kChecked, int kLeft, int kRight, class T, class A>
CNNEXT_INLINE void correlate_tile(const CorrelateRows<T, A>& row, int64_t first, int n, int64_t channel, int lanes) {
  using V = Vec<A>;
  constexpr int kWindow = (kTile - 1) * kStep + kTaps;  // source columns of a full tile
  const int64_t column = first * kStep + row.taps[0].column;
  const int64_t begin = max(0, -column);
  const int64_t end = min((n - 1) * kStep + kTaps, row.source_width - column);

  V acc[kOutRows * kTile];
  const V bias = row.bias ? V::load(row.bias + channel) : V::zero();
  for (int t = 0; t < kOutRows * kTile; ++t) acc[t] = bias;

  for (int64_t i = 0; i < row.num_rows; ++i) {
    const T* source = row.rows[i].pixels + column * row.source_stride + channel;
    V values[kWindow];
#pragma GCC unroll 32
    for (int j = 0; j < kWindow; ++j) {
      const bool exists = kChecked ? j >= begin && j < end : j >= kLeft && j < kWindow - kRight;
      values[j] = exists ? load_lanes<kChecked, A>(source + j * row.source_stride, lanes) : V::zero();
    }
#pragma GCC unroll 2
    for (int o = 0; o < kOutRows; ++o) {
      if (kOutRows > 1 && row.rows[i].weights[o] == nullptr) continue;
      const A* weights = row.rows[i].weights[o] + channel * row.filter_taps;
#pragma GCC unroll 8
      for (int l = 0; l < kTaps; ++l) {
        const V w = V::load(weights + row.taps[l].s * V::kWidth);
#pragma GCC unroll 8
        for (int t = 0; t < kTile; ++t) acc[o * kTile + t] = fma(values[t * kStep + l], w, acc[o * kTile + t]);
      }
    }
  }
  store_tile<kChecked>(acc, row, first, n, channel, lanes);
}

/// The same for any taps and any step.
template <bool kChecked, class T, class A>
CNNEXT_INLINE void correlate_tile_any(const CorrelateRows<T, A>& row, int64_t first, int n, int64_t channel,
                                      int lanes) {
  using V = Vec<A>;
  V acc[kOutRows * kTile];
  const V bias = row.bias ? V::load(row.bias + channel) : V::zero();
  for (int t = 0; t < kOutRows * kTile; ++t) acc[t] = bias;

  for (int64_t i = 0; i < row.num_rows; ++i) {
#pragma GCC unroll 2
    for (int o = 0; o < kOutRows; ++o) {
      if (kOutRows > 1 && row.rows[i].weights[o] == nullptr) continue;
      const A* weights = row.rows[i].weights[o] + channel * row.filter_taps;
      for (int64_t l = 0; l < row.num_taps; ++l) {
        const V w = V::load(weights + row.taps[l].s * V::kWidth);
        const int64_t column = first * row.step + row.taps[l].column;
        const T* source = row.rows[i].pixels + column * row.source_stride + channel;
#pragma GCC unroll 8
        for (int t = 0; t < kTile; ++t) {
          const int64_t c = column + t * row.step;
          if (!kChecked || (t < n && c >= 0 && c < row.source_width)) {
            const V value = load_lanes<kChecked, A>(source + t * row.step * row.source_stride, lanes);
            acc[o * kTile + t] = fma(value, w, acc[o * kTile + t]);
          }
        }
      }
    }
  }
  store_tile<kChecked>(acc, row, first, n, channel, lanes);
}

/// Channels that a tile walks before the next tile starts: enough for contiguous access, few enough that the source
/// pixels two tiles share are still in the first-level cache.
constexpr int64_t kChannelBlock = 128;

/// A full tile of a full vector, of which at most one column at each end lies outside the source, as at the ends of
/// every row of a 3x3 filter: in a row of 7 or 14 pixels that is every tile, too many for the branches of kChecked.
template <int kTaps, int kStep, class T, class A>
CNNEXT_INLINE void correlate_full_tile(const CorrelateRows<T, A>& row, int64_t first, int64_t channel, bool left,
                                       bool right) {
  constexpr int kWidth = Vec<A>::kWidth;
  if (left && right) {
    correlate_tile<kTaps, kStep, false, 1, 1>(row, first, kTile, channel, kWidth);
  } else if (left) {
    correlate_tile<kTaps, kStep, false, 1, 0>(row, first, kTile, channel, kWidth);
  } else if (right) {
    correlate_tile<kTaps, kStep, false, 0, 1>(row, first, kTile, channel, kWidth);
  } else {
    correlate_tile<kTaps, kStep, false, 0, 0>(row, first, kTile, channel, kWidth);
  }
}

/// kTaps = 0: any taps and any step.
template <int kTaps, int kStep, class T, class A>
void correlate_rows_tiles(const CorrelateRows<T, A>& row) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int64_t first_column = row.num_taps > 0 ? row.taps[0].column : 0;
  const int64_t last_column = row.num_taps > 0 ? row.taps[row.num_taps - 1].column : 0;
  for (int64_t block = 0; block < row.channels; block += kChannelBlock) {
    const int64_t block_end = min(block + kChannelBlock, row.channels);
    for (int64_t first = 0; first < row.num_pixels; first += kTile) {
      const int n = static_cast<int>(min(kTile, row.num_pixels - first));
      const int64_t outside_left = -(first * row.step + first_column);
      const int64_t outside_right = (first + kTile - 1) * row.step + last_column - row.source_width + 1;
      constexpr int kMostOutside = kTaps == 3 ? 1 : 0;
      const bool full = n == kTile && outside_left <= kMostOutside && outside_right <= kMostOutside;
      constexpr int64_t kLine = 64 / sizeof(T);  // elements of a cache line
      for (int64_t c = block; c < block_end; c += kLine) {
        row.source_to_come.prefetch(first * row.step, n * row.step, row.source_stride, c);
        row.out_to_come.prefetch(first, n, row.out_stride, c);
      }
      int64_t channel = block;
      for (; full && channel + kWidth <= block_end; channel += kWidth) {
        if constexpr (kTaps == 3) {
          correlate_full_tile<kTaps, kStep>(row, first, channel, outside_left > 0, outside_right > 0);
        } else if constexpr (kTaps > 0) {
          correlate_tile<kTaps, kStep, false, 0, 0>(row, first, kTile, channel, kWidth);
        } else {
          correlate_tile_any<false>(row, first, kTile, channel, kWidth);
        }
      }
      for (; channel < block_end; channel += kWidth) {
        const int lanes = static_cast<int>(min(kWidth, block_end - channel));
        if constexpr (kTaps > 0) {
          correlate_tile<kTaps, kStep, true, 0, 0>(row, first, n, channel, lanes);
        } else {
          correlate_tile_any<true>(row, first, n, channel, lanes);
        }
      }
    }
  }
}

template <class T, class A>
void correlate_rows(const CorrelateRows<T, A>& row) {
  bool consecutive = row.num_taps > 0;
  for (int64_t l = 1; l < row.num_taps; ++l) consecutive &= row.taps[l].column == row.taps[0].column + l;
  const bool fast = is_fast_filter<T>(row.num_taps);
  // One and two taps are what a filter of 3 leaves in a class of backward_input with stride 2.
  const bool few = kMaxFastFilter<T> > 0 && (row.num_taps == 1 || row.num_taps == 2);
  if (consecutive && row.step == 1 && few) {
    if constexpr (kMaxFastFilter<T> > 0)
      dispatch_int<1, 2>(row.num_taps, [&](auto n) { correlate_rows_tiles<n, 1>(row); });
  } else if (consecutive && row.step == 1 && fast) {
    dispatch_fast_filter<T>(row.num_taps, [&](auto n) { correlate_rows_tiles<n, 1>(row); });
  } else if (consecutive && row.step == 2 && fast) {
    dispatch_fast_filter<T>(row.num_taps, [&](auto n) { correlate_rows_tiles<n, 2>(row); });
  } else {
    correlate_rows_tiles<0, 0>(row);
  }
}

/// One row of y or dy with the channels of each pixel regrouped from c * m + j to j * C + c, pixels K apart.
template <class T>
void regroup_channels(const ConvParams& p, const T* from, int64_t from_stride, T* to) {
  const int64_t multiplier = p.K / p.C;
  for (int64_t q = 0; q < p.Q; ++q, from += from_stride, to += p.K) {
    for (int64_t j = 0; j < multiplier; ++j) {
      for (int64_t c = 0; c < p.C; ++c) to[j * p.C + c] = from[c * multiplier + j];
    }
  }
}

/// The inverse.
template <class T>
void ungroup_channels(const ConvParams& p, const T* from, T* to, int64_t to_stride) {
  const int64_t multiplier = p.K / p.C;
  for (int64_t q = 0; q < p.Q; ++q, from += p.K, to += to_stride) {
    for (int64_t j = 0; j < multiplier; ++j) {
      for (int64_t c = 0; c < p.C; ++c) to[c * multiplier + j] = from[j * p.C + c];
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
