// Gradients of depthwise convolution with respect to its filter and bias, NHWC:
//
//   dw[k, r, s] = sum over n, p, q of dy[n, p, q, k] * x[n, p * stride_h + r * dilation_h - pad_h,
//                                                       q * stride_w + s * dilation_w - pad_w, k / m]
//   dbias[k]    = sum over n, p, q of dy[n, p, q, k]
//
// x: N x H x W x C, dy: N x P x Q x K, dw: K x R x S, m = K / C.
//
// Vectors run over channels. The N * P rows of dy are cut into parts, a number that follows from the shape alone; a
// task owns the sums of one part and one group of channels, and walks its rows once. Within a row the sums of a few
// filter rows stay in registers while kTile pixels of dy slide along: a loaded x serves every tap, and with a 3x3
// filter of stride 1 those of two rows of dy. The next rows are prefetched. At the end the parts are added in order, so
// the result does not depend on the threads. Limit: memory for 3x3; else 1 fused multiply-add a tap and vector.
#pragma once

#include "depthwise_correlate_nhwc.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Filter rows whose sums are in registers together: as many as fit beside kTile values of dy.
template <int kTaps>
constexpr int kSumRows = (kTaps == 3 || Vec<float>::kWidth == 16) ? (kTaps <= 5 ? 3 : 2) : 1;

/// Neighbouring rows of dy that share a loaded x, with an undilated filter of kSharedTaps rows and columns and
/// stride 1.
constexpr int kSharedRows = kOutRows;
constexpr int kSharedTaps = 3;

/// One row of dy, or several, y_strides.h apart, against the rows of x under them.
template <class T, class A>
struct WeightRow {
  const ConvParams& p;
  const T* dy;
  int64_t dy_stride;  // from pixel to pixel
  const T* const* x;  // those of the first row's filter rows and on; null where it lies outside
  A* sums;            // tap t at sums + t * sums_stride, whole vectors; the sum of dy follows the last tap
  int64_t sums_stride;
  const T *next_dy, *next_x;  // rows to have in the cache soon
};

/// Adds the products of n pixels (n = 1 or kTile) of kOut rows of dy with filter rows 0 .. kRows of `x`. kChecked:
/// columns may lie outside x, and lanes may be few.
template <int n, int kOut, int kRows, int kTaps, int kStep, bool kChecked, class T, class A>
CNNEXT_INLINE void accumulate_tile(const WeightRow<T, A>& row, const T* const* x, int64_t first, int64_t channel,
                                   int lanes, Vec<A> (&sums)[kRows][kTaps], Vec<A>& bias_sum) {
  using V = Vec<A>;
  constexpr int kWindow = (n - 1) * kStep + kTaps, kSourceRows = (kOut - 1) * kStep + kRows;
  const int64_t column = first * kStep - row.p.pad_w;
  const int64_t begin = max(0, -column);
  const int64_t end = row.p.W - column;

  V gradient[kOut][n];
  for (int o = 0; o < kOut; ++o) {
    for (int t = 0; t < n; ++t) {
      const int64_t pixel = o * row.p.y_strides.h + (first + t) * row.dy_stride + channel;
      gradient[o][t] = load_lanes<kChecked, A>(row.dy + pixel, lanes);
    }
  }
  V total = gradient[0][0];
  for (int i = 1; i < kOut * n; ++i) total += gradient[i / n][i % n];
  bias_sum += total;
#pragma GCC unroll 8
  for (int h = 0; h < kSourceRows; ++h) {
    if (x[h] == nullptr) continue;
    const T* source = x[h] + column * row.p.x_strides.w + channel;
#pragma GCC unroll 32
    for (int j = 0; j < kWindow; ++j) {
      if (kChecked && (j < begin || j >= end)) continue;
      const V value = load_lanes<kChecked, A>(source + j * row.p.x_strides.w, lanes);
#pragma GCC unroll 8
      for (int o = 0; o < kOut; ++o) {
        const int r = h - o * kStep;
        if (r < 0 || r >= kRows) continue;
#pragma GCC unroll 32
        for (int t = 0; t < n; ++t) {
          const int s = j - t * kStep;
          if (s >= 0 && s < kTaps) sums[r][s] = fma(value, gradient[o][t], sums[r][s]);
        }
      }
    }
  }
}

/// Asks for n pixels of the rows to come, beside the arithmetic on those at hand. The hardware does not: a row of one
/// group of channels is a stream of short pieces, and there are as many streams as rows in use.
template <int n, int kOut, int kStep, class T, class A>
CNNEXT_INLINE void prefetch_tile(const WeightRow<T, A>& row, int64_t first, int64_t channel) {
  const T* dy = row.next_dy + first * row.dy_stride + channel;
#pragma GCC unroll 1
  for (int t = 0; t < n; ++t, dy += row.dy_stride) {
    for (int o = 0; o < kOut; ++o) __builtin_prefetch(dy + o * row.p.y_strides.h, 0, 2);
  }
  const T* x = row.next_x + first * kStep * row.p.x_strides.w + channel;
#pragma GCC unroll 1
  for (int t = 0; t < n * kStep; ++t, x += row.p.x_strides.w) {
    for (int o = 0; o < kOut * kStep; ++o) __builtin_prefetch(x + o * row.p.x_strides.h, 0, 2);
  }
}

/// Adds kOut rows of dy to the sums of one vector of channels, for an undilated filter kTaps wide.
template <int kOut, int kTaps, int kStep, class T, class A>
CNNEXT_INLINE void accumulate_row(const WeightRow<T, A>& row, int64_t channel, int lanes) {
  using V = Vec<A>;
  constexpr int kRows = kSumRows<kTaps>, kSourceRows = (kOut - 1) * kStep + kRows;
  for (int64_t first_r = 0; first_r < row.p.R; first_r += kRows) {
    const int64_t rows = min(kRows, row.p.R - first_r);
    const T* x[kSourceRows];
    V sums[kRows][kTaps];
    A* memory = row.sums + first_r * kTaps * row.sums_stride + channel;
    for (int h = 0; h < kSourceRows; ++h) x[h] = h < rows || kOut > 1 ? row.x[first_r + h] : nullptr;
    for (int r = 0; r < kRows; ++r) {
      for (int s = 0; s < kTaps; ++s) {
        sums[r][s] = r < rows ? V::load(memory + (r * kTaps + s) * row.sums_stride) : V::zero();
      }
    }
    V bias_sum = V::zero();

    int64_t first = 0;
    for (; first + kTile <= row.p.Q; first += kTile) {
      prefetch_tile<kTile, kOut, kStep>(row, first, channel);
      const int64_t column = first * kStep - row.p.pad_w;
      if (lanes == V::kWidth && column >= 0 && column + (kTile - 1) * kStep + kTaps <= row.p.W) {
        accumulate_tile<kTile, kOut, kRows, kTaps, kStep, false>(row, x, first, channel, lanes, sums, bias_sum);
      } else {
        accumulate_tile<kTile, kOut, kRows, kTaps, kStep, true>(row, x, first, channel, lanes, sums, bias_sum);
      }
    }
    for (; first < row.p.Q; ++first) {
      accumulate_tile<1, kOut, kRows, kTaps, kStep, true>(row, x, first, channel, lanes, sums, bias_sum);
    }

    for (int r = 0; r < kRows; ++r) {
      for (int s = 0; s < kTaps; ++s) {
        if (r < rows) sums[r][s].store(memory + (r * kTaps + s) * row.sums_stride);
      }
    }
    if (first_r == 0) {
      A* total = row.sums + row.p.R * kTaps * row.sums_stride + channel;
      (V::load(total) + bias_sum).store(total);
    }
  }
}

/// The same for any filter: tap by tap, each with kVectors vectors of channels to hide the latency of the sums.
template <int kVectors, class T, class A>
CNNEXT_INLINE void accumulate_row_any(const WeightRow<T, A>& row, int64_t channel, int lanes) {
  using V = Vec<A>;
  for (int64_t tap = 0; tap <= row.p.R * row.p.S; ++tap) {
    const bool is_bias = tap == row.p.R * row.p.S;
    const T* x = is_bias ? nullptr : row.x[tap / row.p.S];
    if (!is_bias && x == nullptr) continue;
    // Pixels q whose column q * stride + offset lies inside.
    const int64_t offset = tap % row.p.S * row.p.dilation_w - row.p.pad_w;
    const int64_t begin = is_bias || offset >= 0 ? 0 : ceil_div(-offset, row.p.stride_w);
    const int64_t inside = row.p.W - offset <= 0 ? 0 : ceil_div(row.p.W - offset, row.p.stride_w);
    const int64_t end = is_bias ? row.p.Q : min(row.p.Q, inside);

    A* memory = row.sums + tap * row.sums_stride + channel;
    V sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = V::load(memory + v * V::kWidth);
    for (int64_t q = begin; q < end; ++q) {
      const T* dy = row.dy + q * row.dy_stride + channel;
      const T* source = is_bias ? dy : x + (q * row.p.stride_w + offset) * row.p.x_strides.w + channel;
      for (int v = 0; v < kVectors; ++v) {
        const V gradient = load_lanes<kVectors == 1, A>(dy + v * V::kWidth, lanes);
        sums[v] = is_bias ? sums[v] + gradient
                          : fma(load_lanes<kVectors == 1, A>(source + v * V::kWidth, lanes), gradient, sums[v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) sums[v].store(memory + v * V::kWidth);
  }
}

/// Adds kOut rows of dy to the sums of `channels` channels. kTaps = 0: any filter.
template <int kOut, int kTaps, int kStep, class T, class A>
void accumulate_row_channels(const WeightRow<T, A>& row, int64_t channels) {
  constexpr int kWidth = Vec<A>::kWidth;
  int64_t channel = 0;
  if constexpr (kTaps == 0) {
    for (; channel + 4 * kWidth <= channels; channel += 4 * kWidth) accumulate_row_any<4>(row, channel, kWidth);
  }
  for (; channel < channels; channel += kWidth) {
    const int lanes = static_cast<int>(min(kWidth, channels - channel));
    if constexpr (kTaps == 0) {
      accumulate_row_any<1>(row, channel, lanes);
    } else {
      accumulate_row<kOut, kTaps, kStep>(row, channel, lanes);
    }
  }
}

template <class T, class A>
void accumulate_row_dispatch(const WeightRow<T, A>& row, int64_t rows, int64_t channels) {
  if constexpr (kSharedRows > 1 && kMaxFastFilter<T> >= kSharedTaps) {
    if (rows > 1) return accumulate_row_channels<kSharedRows, kSharedTaps, 1>(row, channels);
  }
  const bool fast = row.p.dilation_w == 1 && is_fast_filter<T>(row.p.S) && row.p.stride_w <= 2;
  if (!fast) {
    accumulate_row_channels<1, 0, 0>(row, channels);
  } else if (row.p.stride_w == 1) {
    dispatch_fast_filter<T>(row.p.S, [&](auto s) { accumulate_row_channels<1, s, 1>(row, channels); });
  } else {
    dispatch_fast_filter<T>(row.p.S, [&](auto s) { accumulate_row_channels<1, s, 2>(row, channels); });
  }
}

/// How the sums are divided, from the shape alone.
struct WeightTasks {
  int64_t channel_groups, channels_per_group, row_parts;

  explicit WeightTasks(const ConvParams& p) {
    constexpr int64_t kGroup = 128;               // channels: 256 or more contiguous bytes
    constexpr int64_t kWorkPerTask = 256 * 1024;  // multiply-adds, some ten times the cost of adding a part
    constexpr int64_t kMaxTasks = 64;
    channels_per_group = min(p.C, kGroup);
    channel_groups = ceil_div(p.C, channels_per_group);
    const int64_t work = p.N * p.P * p.Q * p.K * p.R * p.S;
    const int64_t tasks = min(kMaxTasks, ceil_div(work, kWorkPerTask));
    row_parts = min(p.N * p.P, ceil_div(tasks, channel_groups));
  }
};

template <class T, class A>
void depthwise_backward_weight_nhwc(const ConvParams& p, const Parallel& parallel, const T* dy, const T* x, T* dw,
                                    T* dbias) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int64_t multiplier = p.K / p.C, taps = p.R * p.S;
  const WeightTasks tasks(p);
  // sums[part][tap or bias][j][c], with whole vectors for each j so that no two tasks share one.
  const int64_t j_stride = ceil_div(p.C, kWidth) * kWidth;
  const int64_t sums_stride = multiplier * j_stride, part_size = (taps + 1) * sums_stride;
  Scratch<A, 4672> sums(tasks.row_parts * part_size);

  const int64_t task_count = tasks.row_parts * tasks.channel_groups;
  const int64_t total_work = p.N * p.P * p.Q * p.K * taps;
  const bool shared = kMaxFastFilter<T> >= kSharedTaps && p.R == kSharedTaps && p.S == kSharedTaps &&
                      p.dilation_h == 1 && p.dilation_w == 1 && p.stride_h == 1 && p.stride_w == 1 && multiplier == 1;
  parallel(0, task_count, depthwise_grain(total_work / task_count), [&](int64_t begin, int64_t end) {
    Scratch<const T*, 32> x_rows(p.R + kSharedRows - 1);
    Scratch<T, 2048> grouped(multiplier > 1 ? p.Q * p.K : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / tasks.channel_groups;
      const int64_t channel = task % tasks.channel_groups * tasks.channels_per_group;
      const int64_t channels = min(tasks.channels_per_group, p.C - channel);
      A* part_sums = sums.data() + part * part_size;
      for (int64_t tap = 0; tap <= taps; ++tap) {
        for (int64_t j = 0; j < multiplier; ++j) {
          A* start = part_sums + tap * sums_stride + j * j_stride + channel;
          for (int64_t c = 0; c < channels; c += kWidth) Vec<A>::zero().store(start + c);
        }
      }
      const int64_t rows = p.N * p.P;
      const int64_t end_row = (part + 1) * rows / tasks.row_parts;
      for (int64_t index = part * rows / tasks.row_parts, taken = 1; index < end_row; index += taken) {
        const int64_t n = index / p.P, out_h = index % p.P;
        taken = shared && kSharedRows <= min(end_row - index, p.P - out_h) ? kSharedRows : 1;
        for (int64_t r = 0; r < p.R + taken - 1; ++r) {
          const int64_t h = out_h * p.stride_h + r * p.dilation_h - p.pad_h;
          x_rows[r] = h < 0 || h >= p.H ? nullptr : x + n * p.x_strides.n + h * p.x_strides.h + channel;
        }
        const int64_t next = min(index + taken, end_row - 1), next_n = next / p.P, next_h = next % p.P;
        const int64_t next_x_row = max(0, min(next_h * p.stride_h + p.R - 1 - p.pad_h, p.H - 1));
        const T* dy_row = dy + n * p.y_strides.n + out_h * p.y_strides.h;
        if (multiplier > 1) regroup_channels(p, dy_row, p.y_strides.w, grouped.data());
        for (int64_t j = 0; j < multiplier; ++j) {
          const WeightRow<T, A> row{p,
                                    multiplier > 1 ? grouped.data() + j * p.C + channel : dy_row + channel,
                                    multiplier > 1 ? p.K : p.y_strides.w,
                                    x_rows.data(),
                                    part_sums + j * j_stride + channel,
                                    sums_stride,
                                    dy + next_n * p.y_strides.n + next_h * p.y_strides.h + channel,
                                    x + next_n * p.x_strides.n + next_x_row * p.x_strides.h + channel};
          accumulate_row_dispatch(row, taken, channels);
        }
      }
    }
  });

  const int64_t grain = depthwise_grain(part_size * tasks.row_parts / j_stride);
  parallel(0, j_stride / kWidth, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * kWidth; c < end * kWidth; c += kWidth) {
      for (int64_t j = 0; j < multiplier; ++j) {
        for (int64_t tap = 0; tap <= taps; ++tap) {
          const A* first = sums.data() + tap * sums_stride + j * j_stride + c;
          Vec<A> total = Vec<A>::zero();
          for (int64_t part = 0; part < tasks.row_parts; ++part) total += Vec<A>::load(first + part * part_size);
          A values[kWidth];
          total.store(values);
          for (int64_t i = 0; i < min(kWidth, p.C - c); ++i) {
            const int64_t k = (c + i) * multiplier + j;
            if (tap < taps && dw) store_scalar(dw + k * taps + tap, values[i]);
            if (tap == taps && dbias) store_scalar(dbias + k, values[i]);
          }
        }
      }
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
