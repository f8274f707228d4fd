// One row of a depthwise correlation in NHWC: the inner loop of both forward and backward_input.
//
//   out[i, c] = epilogue(bias[c] + sum over source rows r, column taps l of
//                        source_r[i * step + column_l, c] * weights_r[l, c])
//
// Taps whose column lies outside the source contribute nothing: that is the padding.
//   forward          i = q, step = stride_w, column_s = s * dilation_w - pad_w
//   backward_input   one call for each class of columns w modulo stride_w, where every w has the same taps; step = 1
//
// Vectors run over channels; kTile neighbouring pixels are held in registers, so that a loaded source pixel serves
// several outputs and a loaded weight serves kTile of them. Taps at consecutive columns (any undilated filter) have a
// kernel for each count in use; the rest share one that loads a pixel for each tap.
// Limit: memory for small filters; 9 fused multiply-adds a vector of outputs for 3x3.
#pragma once

#include "depthwise_common.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Pixels held in registers. MobileNet's rows (7, 14, ... 112) are multiples of 7, and 7 accumulators + 7 weights + 1
/// source fit 16 registers.
constexpr int kTile = 7;

/// One source row that contributes to the row being computed, and its weights: tap l, channel c at
/// weights[taps[l].weight + c], readable up to a full vector.
template <class T, class A>
struct SourceRow {
  const T* pixels;
  const A* weights;
};

struct ColumnTap {
  int64_t column;
  int64_t weight;
};

/// The row to compute. Offsets and strides in elements; channels are contiguous everywhere.
template <class T, class A>
struct CorrelateRow {
  const SourceRow<T, A>* rows;
  int64_t num_rows;
  const ColumnTap* taps;  // columns ascending
  int64_t num_taps;
  int64_t source_width;
  int64_t source_stride;  // from pixel to pixel
  int64_t step;
  T* out;
  int64_t out_stride;
  int64_t num_pixels;
  int64_t channels;
  const A* bias;  // null, or `channels` values readable up to a full vector
  Epilogue<A> epilogue;
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

/// Pixels [first, first + n) of one vector of channels, for kTaps consecutive columns and a step of kStep.
/// kChecked: n may be less than kTile, `lanes` less than a vector, and columns may lie outside the source.
template <int kTaps, int kStep, bool kChecked, class T, class A>
CNNEXT_INLINE void correlate_tile(const CorrelateRow<T, A>& row, int64_t first, int n, int64_t channel, int lanes) {
  using V = Vec<A>;
  constexpr int kWindow = (kTile - 1) * kStep + kTaps;  // source columns of a full tile
  const int64_t column = first * kStep + row.taps[0].column;
  const int64_t begin = max(0, -column);
  const int64_t end = min((n - 1) * kStep + kTaps, row.source_width - column);

  V acc[kTile];
  const V bias = row.bias ? V::load(row.bias + channel) : V::zero();
  for (int t = 0; t < kTile; ++t) acc[t] = bias;

  for (int64_t i = 0; i < row.num_rows; ++i) {
    const A* weights = row.rows[i].weights + channel;
    const T* source = row.rows[i].pixels + column * row.source_stride + channel;
    V values[kWindow];
#pragma GCC unroll 32
    for (int j = 0; j < kWindow; ++j) {
      const bool exists = !kChecked || (j >= begin && j < end);
      values[j] = exists ? load_lanes<kChecked, A>(source + j * row.source_stride, lanes) : V::zero();
    }
#pragma GCC unroll 8
    for (int l = 0; l < kTaps; ++l) {
      const V w = V::load(weights + row.taps[l].weight);
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t) acc[t] = fma(values[t * kStep + l], w, acc[t]);
    }
  }

  row.epilogue.apply(acc);
  T* out = row.out + first * row.out_stride + channel;
#pragma GCC unroll 32
  for (int t = 0; t < kTile; ++t) {
    if (!kChecked || t < n) store_lanes<kChecked, A>(acc[t], out + t * row.out_stride, lanes);
  }
}

/// The same for any taps and any step.
template <bool kChecked, class T, class A>
CNNEXT_INLINE void correlate_tile_any(const CorrelateRow<T, A>& row, int64_t first, int n, int64_t channel, int lanes) {
  using V = Vec<A>;
  V acc[kTile];
  const V bias = row.bias ? V::load(row.bias + channel) : V::zero();
  for (int t = 0; t < kTile; ++t) acc[t] = bias;

  for (int64_t i = 0; i < row.num_rows; ++i) {
    for (int64_t l = 0; l < row.num_taps; ++l) {
      const V w = V::load(row.rows[i].weights + row.taps[l].weight + channel);
      const int64_t column = first * row.step + row.taps[l].column;
      const T* source = row.rows[i].pixels + column * row.source_stride + channel;
#pragma GCC unroll 32
      for (int t = 0; t < kTile; ++t) {
        const int64_t c = column + t * row.step;
        if (!kChecked || (t < n && c >= 0 && c < row.source_width)) {
          acc[t] = fma(load_lanes<kChecked, A>(source + t * row.step * row.source_stride, lanes), w, acc[t]);
        }
      }
    }
  }

  row.epilogue.apply(acc);
  T* out = row.out + first * row.out_stride + channel;
#pragma GCC unroll 32
  for (int t = 0; t < kTile; ++t) {
    if (!kChecked || t < n) store_lanes<kChecked, A>(acc[t], out + t * row.out_stride, lanes);
  }
}

/// Channels that a tile walks before the next tile starts: enough for contiguous access, few enough that the source
/// pixels two tiles share are still in the first-level cache.
constexpr int64_t kChannelBlock = 128;

/// kTaps = 0: any taps and any step.
template <int kTaps, int kStep, class T, class A>
void correlate_row_tiles(const CorrelateRow<T, A>& row) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int64_t first_column = row.num_taps > 0 ? row.taps[0].column : 0;
  const int64_t last_column = row.num_taps > 0 ? row.taps[row.num_taps - 1].column : 0;
  for (int64_t block = 0; block < row.channels; block += kChannelBlock) {
    const int64_t block_end = min(block + kChannelBlock, row.channels);
    for (int64_t first = 0; first < row.num_pixels; first += kTile) {
      const int n = static_cast<int>(min(kTile, row.num_pixels - first));
      const bool inside = n == kTile && first * row.step + first_column >= 0 &&
                          (first + kTile - 1) * row.step + last_column < row.source_width;
      int64_t channel = block;
      for (; inside && channel + kWidth <= block_end; channel += kWidth) {
        if constexpr (kTaps > 0) {
          correlate_tile<kTaps, kStep, false>(row, first, kTile, channel, kWidth);
        } else {
          correlate_tile_any<false>(row, first, kTile, channel, kWidth);
        }
      }
      for (; channel < block_end; channel += kWidth) {
        const int lanes = static_cast<int>(min(kWidth, block_end - channel));
        if constexpr (kTaps > 0) {
          correlate_tile<kTaps, kStep, true>(row, first, n, channel, lanes);
        } else {
          correlate_tile_any<true>(row, first, n, channel, lanes);
        }
      }
    }
  }
}

template <class T, class A>
void correlate_row(const CorrelateRow<T, A>& row) {
  bool consecutive = row.num_taps > 0;
  for (int64_t l = 1; l < row.num_taps; ++l) consecutive &= row.taps[l].column == row.taps[0].column + l;
  const bool fast = is_fast_filter<T>(row.num_taps);
  // One and two taps are what a filter of 3 leaves in a class of backward_input with stride 2.
  const bool few = kMaxFastFilter<T> > 0 && (row.num_taps == 1 || row.num_taps == 2);
  if (consecutive && row.step == 1 && few) {
    if constexpr (kMaxFastFilter<T> > 0) dispatch_int<1, 2>(row.num_taps, [&](auto n) { correlate_row_tiles<n, 1>(row); });
  } else if (consecutive && row.step == 1 && fast) {
    dispatch_fast_filter<T>(row.num_taps, [&](auto n) { correlate_row_tiles<n, 1>(row); });
  } else if (consecutive && row.step == 2 && fast) {
    dispatch_fast_filter<T>(row.num_taps, [&](auto n) { correlate_row_tiles<n, 2>(row); });
  } else {
    correlate_row_tiles<0, 0>(row);
  }
}

/// The filter (K x R x S) as accumulators, tap by tap: packed[tap * K + j * C + c] = w[c * m + j, tap], where m = K / C.
/// Output channels are thus grouped by j, so that a vector of them reads neighbouring input channels.
template <class T, class A>
void pack_filter_nhwc(const ConvParams& p, const T* w, A* packed) {
  const int64_t taps = p.R * p.S, multiplier = p.K / p.C;
  for (int64_t c = 0; c < p.C; ++c) {
    for (int64_t j = 0; j < multiplier; ++j) {
      for (int64_t tap = 0; tap < taps; ++tap) packed[tap * p.K + j * p.C + c] = load_scalar<A>(w++);
    }
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

/// Stack space for a packed filter: 3x3 with 512 channels in float32.
constexpr int64_t kFilterScratch = 4608 + 64;

}  // namespace cnnext::cpu::CNNEXT_ISA
