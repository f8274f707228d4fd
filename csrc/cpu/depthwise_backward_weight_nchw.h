// Gradients of depthwise convolution with respect to its filter and bias, NCHW:
//
//   dw[k, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, k / m, p * stride_h + r * dilation_h - pad_h,
//                                                       q * stride_w + s * dilation_w - pad_w]
//   dbias[k]    = sum over n, p, q of dy[n, k, p, q]
//
// x: N x C x H x W, dy: N x K x P x Q, dw: K x R x S, m = K / C.
//
// Vectors run along a row, and each tap has a vector of sums whose lanes are added at the very end. A task owns the sums of
// one output channel over a part of the batch; the number of parts follows from the shape alone, and parts are added in
// order. Rows of x are packed band by band (depthwise_planes.h). The sums of some filter columns stay in registers with
// a few rows of dy, so that a loaded x serves every tap of its column.
// Limit: 9 fused multiply-adds a vector of dy for 3x3.
#pragma once

#include "depthwise_planes.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// For columns of R taps: filter columns and rows of dy whose values are in registers together.
template <int kR>
struct WeightBlock {
  static constexpr bool kManyRegisters = Vec<float>::kWidth == 16;
  static constexpr int kColumns = kR == 1 ? 8 : kR == 3 ? 3 : kR == 5 ? (kManyRegisters ? 5 : 2) : (kManyRegisters ? 3 : 1);
  static constexpr int kRows = kManyRegisters && kR != 5 ? 7 : 4;
};

/// A band of rows of dy over packed rows of x. A filter column is R taps one above the other.
template <class T, class A>
struct WeightBand {
  const T* dy;
  int64_t dy_stride;
  int64_t rows, width;
  const A* packed;
  int64_t pitch;
  const int64_t* offsets;  // of each filter column, in the packed rows of the first row
  int64_t columns;
  int64_t R;
  int64_t step;   // packed rows from one row of dy to the next
  Vec<A>* sums;   // [column][R], then that of dy
};

/// kRows rows and one vector of columns of dy, with filter columns [first, first + count), count <= kColumns.
/// kPartial: only `lanes` lanes exist. NOTE: x is masked too; where dy has no element, an infinite x must not give NaN.
template <int kRows, int kColumns, int kR, int kStep, bool kPartial, class T, class A>
CNNEXT_INLINE void accumulate_block(const WeightBand<T, A>& band, int64_t row, int64_t column, int lanes, int64_t first,
                                    int64_t count, Vec<A> (&sums)[kColumns][kR], Vec<A>& dy_sum) {
  using V = Vec<A>;
  constexpr int kSourceRows = kR == 1 ? kRows : (kRows - 1) * kStep + kR;
  const int64_t source_stride = kR == 1 ? band.step * band.pitch : band.pitch;
  const T* dy = band.dy + row * band.dy_stride + column;
  const A* packed = band.packed + row * band.step * band.pitch + column;

  V gradient[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const T* from = dy + i * band.dy_stride;
    gradient[i] = kPartial ? V::load(from, lanes) : V::load(from);
    dy_sum += gradient[i];
  }
#pragma GCC unroll 8
  for (int l = 0; l < kColumns; ++l) {
    if (l >= count) break;
    const A* source = packed + band.offsets[first + l];
#pragma GCC unroll 32
    for (int h = 0; h < kSourceRows; ++h) {
      const A* from = source + h * source_stride;
      const V value = kPartial ? V::load(from, lanes) : V::load(from);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const int r = kR == 1 ? (i == h ? 0 : -1) : h - i * kStep;
        if (r >= 0 && r < kR) sums[l][r] = fma(value, gradient[i], sums[l][r]);
      }
    }
  }
}

template <int kR, int kStep, class T, class A>
void accumulate_band(const WeightBand<T, A>& band) {
  using V = Vec<A>;
  constexpr int kColumns = WeightBlock<kR>::kColumns, kRows = WeightBlock<kR>::kRows;
  for (int64_t first = 0; first < band.columns; first += kColumns) {
    const int64_t count = min(kColumns, band.columns - first);
    V sums[kColumns][kR];
    for (int l = 0; l < kColumns; ++l) {
      for (int r = 0; r < kR; ++r) sums[l][r] = l < count ? band.sums[(first + l) * kR + r] : V::zero();
    }
    V dy_sum = V::zero();

    const auto rows_block = [&](auto rows, int64_t row) {
      int64_t column = 0;
      for (; column + V::kWidth <= band.width; column += V::kWidth) {
        accumulate_block<rows, kColumns, kR, kStep, false>(band, row, column, V::kWidth, first, count, sums, dy_sum);
      }
      if (column < band.width) {
        const int lanes = static_cast<int>(band.width - column);
        accumulate_block<rows, kColumns, kR, kStep, true>(band, row, column, lanes, first, count, sums, dy_sum);
      }
    };
    int64_t row = 0;
    for (; row + kRows <= band.rows; row += kRows) rows_block(std::integral_constant<int, kRows>{}, row);
    for (; row < band.rows; ++row) rows_block(std::integral_constant<int, 1>{}, row);

    for (int l = 0; l < kColumns; ++l) {
      for (int r = 0; r < kR; ++r) {
        if (l < count) band.sums[(first + l) * kR + r] = sums[l][r];
      }
    }
    if (first == 0) band.sums[band.columns * kR] += dy_sum;
  }
}

template <class T, class A>
void accumulate_band_dispatch(const WeightBand<T, A>& band) {
  constexpr std::integral_constant<int, 1> one{};
  const auto run = [&](auto r, auto step) { accumulate_band<r, step>(band); };
  if (band.R == 3) {
    band.step == 1 ? run(std::integral_constant<int, 3>{}, one)
                   : run(std::integral_constant<int, 3>{}, std::integral_constant<int, 2>{});
  } else if (band.R == 5) {
    band.step == 1 ? run(std::integral_constant<int, 5>{}, one)
                   : run(std::integral_constant<int, 5>{}, std::integral_constant<int, 2>{});
  } else if (band.R == 7) {
    band.step == 1 ? run(std::integral_constant<int, 7>{}, one)
                   : run(std::integral_constant<int, 7>{}, std::integral_constant<int, 2>{});
  } else {
    run(one, one);
  }
}

template <class T, class A>
void depthwise_backward_weight_nchw(const ConvParams& p, const Parallel& parallel, const T* dy, const T* x, T* dw,
                                    T* dbias) {
  using V = Vec<A>;
  const int64_t multiplier = p.K / p.C, taps = p.R * p.S;
  // With few channels the batch is divided too, or most threads would idle.
  constexpr int64_t kTasks = 32;
  const int64_t parts = min(p.N, ceil_div(kTasks, p.K));

  const PackedRows packing(p.stride_w, -p.pad_w, p.Q + (p.S - 1) * p.dilation_w / p.stride_w);
  const int64_t span = (p.R - 1) * p.dilation_h + 1;
  const int64_t rows_per_band = band_rows(packing.pitch, span, p.stride_h, p.P);
  const bool whole_columns = p.dilation_h == 1 && p.stride_h <= 2 && (p.R == 3 || p.R == 5 || p.R == 7);
  const int64_t column_taps = whole_columns ? p.R : 1, columns = taps / column_taps;
  Scratch<int64_t, 64> offsets(columns);
  for (int64_t l = 0; l < columns; ++l) {
    offsets[l] = l / p.S * p.dilation_h * packing.pitch + packing.offset(l % p.S * p.dilation_w - p.pad_w);
  }
  // The taps are summed column by column; the place of tap (r, s) in that order:
  const auto place = [&](int64_t r, int64_t s) { return whole_columns ? s * p.R + r : r * p.S + s; };
  // partial[part][k][tap or bias], when there are several parts.
  Scratch<A, 1024> partial(parts > 1 ? parts * p.K * (taps + 1) : 0);
  const auto write = [&](int64_t k, int64_t r, int64_t s, A value) {
    if (r < p.R) {
      if (dw) store_scalar(dw + k * taps + r * p.S + s, value);
    } else if (dbias) {
      store_scalar(dbias + k, value);
    }
  };

  const int64_t work = ceil_div(p.N, parts) * p.P * p.Q * taps;
  parallel(0, parts * p.K, grain_for(work), [&](int64_t begin, int64_t end) {
    Scratch<A, kBandScratch> packed(packing.size((rows_per_band - 1) * p.stride_h + span));
    Scratch<V, 64> sums(taps + 1);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t part = index / p.K, k = index % p.K;
      for (int64_t i = 0; i <= taps; ++i) sums[i] = V::zero();
      for (int64_t n = part * p.N / parts; n < (part + 1) * p.N / parts; ++n) {
        for (int64_t out_h = 0; out_h < p.P; out_h += rows_per_band) {
          const int64_t rows = min(rows_per_band, p.P - out_h);
          packing.fill(packed.data(), x + n * p.x_strides.n + k / multiplier * p.x_strides.c, p.x_strides.h, p.H, p.W,
                       out_h * p.stride_h - p.pad_h, (rows - 1) * p.stride_h + span);
          accumulate_band_dispatch(WeightBand<T, A>{
              dy + n * p.y_strides.n + k * p.y_strides.c + out_h * p.y_strides.h, p.y_strides.h, rows, p.Q,
              packed.data(), packing.pitch, offsets.data(), columns, column_taps, p.stride_h, sums.data()});
        }
      }
      for (int64_t r = 0; r <= p.R; ++r) {
        for (int64_t s = 0; s < (r < p.R ? p.S : 1); ++s) {
          const A value = sum(r < p.R ? sums[place(r, s)] : sums[taps]);
          if (parts == 1) {
            write(k, r, s, value);
          } else {
            partial[index * (taps + 1) + r * p.S + s] = value;
          }
        }
      }
    }
  });
  if (parts == 1) return;

  for (int64_t k = 0; k < p.K; ++k) {
    for (int64_t tap = 0; tap <= taps; ++tap) {
      A total = A(0);
      for (int64_t part = 0; part < parts; ++part) total += partial[(part * p.K + k) * (taps + 1) + tap];
      write(k, tap / p.S, tap % p.S, total);
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
