// Gradients of depthwise convolution with respect to its filter and bias, NCHW:
//
//   dw[k, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, k / m, p * stride_h + r * dilation_h - pad_h,
//                                                       q * stride_w + s * dilation_w - pad_w]
//   dbias[k]    = sum over n, p, q of dy[n, k, p, q]
//
// x: N x C x H x W, dy: N x K x P x Q, dw: K x R x S, m = K / C.
//
// Vectors run along a row (depthwise_source_nchw.h), and each tap has a vector of sums whose lanes are added at the
// very end. A task owns the sums of one output channel over a part of the batch; the number of parts follows from the
// shape alone, and parts are added in order. The sums of some filter columns stay in registers with a few rows of dy,
// so that a loaded x serves every tap of its column. Limit: 9 fused multiply-adds a vector of dy for 3x3.
#pragma once

#include "depthwise_forward_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// For filter columns of R taps: columns whose sums, and rows of dy which, are in registers together.
template <int kR>
struct WeightBlock {
  static constexpr bool kManyRegisters = Vec<float>::kWidth == 16;
  static constexpr int kColumns = kR == 1   ? 8
                                  : kR == 3 ? 3
                                  : kR == 5 ? (kManyRegisters ? 5 : 2)
                                            : (kManyRegisters ? 3 : 1);
  static constexpr int kRows = kManyRegisters && kR != 5 ? 7 : 4;
};

/// A task is one output channel over one part of the batch.
template <class T, class A>
struct WeightCall {
  const ConvParams& p;
  const T *dy, *x;
  T *dw, *dbias;
  const TapPosition* positions;  // of the filter columns
  int64_t columns;
  bool whole;  // whole columns of R taps
  int64_t parts;
  A* partial;  // [part][k][tap, or bias], if there are several parts

  int64_t taps() const { return p.R * p.S; }
  PlaneShape x_shape() const { return {p.H, p.W, p.x_strides.h}; }

  void write(int64_t k, int64_t tap, A value) const {
    if (tap < taps() && dw) store_scalar(dw + k * taps() + tap, value);
    if (tap == taps() && dbias) store_scalar(dbias + k, value);
  }
};

/// The planes of one channel for some images: image i at dy + i * p.y_strides.n and x + i * p.x_strides.n.
template <class T>
struct ChannelPlanes {
  const T *dy, *x;
  int64_t images;
  const T *next_dy, *next_x;  // the first planes of the next task
};

/// For each task of the range: calls f(planes, sums), then adds the lanes of the sums [column][R], which that of dy
/// follows.
template <class T, class A, class F>
CNNEXT_INLINE void for_weight_tasks(const WeightCall<T, A>& call, int64_t begin, int64_t end, const F& f) {
  const ConvParams& p = call.p;
  const int64_t taps_in_column = call.whole ? p.R : 1;
  const auto planes_of = [&](int64_t index) {
    const int64_t part = index / p.K, k = index % p.K, n = part * p.N / call.parts;
    return ChannelPlanes<T>{call.dy + n * p.y_strides.n + k * p.y_strides.c,
                            call.x + n * p.x_strides.n + k / (p.K / p.C) * p.x_strides.c,
                            (part + 1) * p.N / call.parts - n, nullptr, nullptr};
  };
  Scratch<Vec<A>, 64> sums(call.taps() + 1);
  ChannelPlanes<T> planes = planes_of(begin);
  for (int64_t index = begin; index < end; ++index) {
    const ChannelPlanes<T> next = planes_of(min(index + 1, end - 1));
    planes.next_dy = next.dy;
    planes.next_x = next.x;
    for (int64_t i = 0; i <= call.taps(); ++i) sums[i] = Vec<A>::zero();
    f(planes, sums.data());
    const auto finish = [&](int64_t place, int64_t tap) {
      const A value = sum(sums[place]);
      if (call.parts == 1) {
        call.write(index, tap, value);
      } else {
        call.partial[index * (call.taps() + 1) + tap] = value;
      }
    };
    for (int64_t l = 0; l < call.columns; ++l) {
      for (int64_t r = 0; r < taps_in_column; ++r) finish(l * taps_in_column + r, r * p.S + l);
    }
    finish(call.taps(), call.taps());
    planes = next;
  }
}

/// The sums in registers: `count` <= kColumns filter columns from `first` on, and that of dy.
template <int kColumns, int kR, class A>
struct WeightSums {
  Vec<A> taps[kColumns][kR];
  Vec<A> dy;
  int64_t first, count;

  CNNEXT_INLINE WeightSums(const Vec<A>* memory, int64_t first_column, int64_t columns)
      : dy(Vec<A>::zero()), first(first_column), count(min(kColumns, columns - first_column)) {
    for (int l = 0; l < kColumns; ++l) {
      for (int r = 0; r < kR; ++r) taps[l][r] = l < count ? memory[(first + l) * kR + r] : Vec<A>::zero();
    }
  }

  CNNEXT_INLINE void write(Vec<A>* memory, int64_t columns) const {
    for (int l = 0; l < kColumns; ++l) {
      for (int r = 0; r < kR; ++r) {
        if (l < count) memory[(first + l) * kR + r] = taps[l][r];
      }
    }
    if (first == 0) memory[columns * kR] += dy;
  }
};

/// Adds the products of kRows vectors of dy with the source under them.
template <int kRows, int kStep, int kColumns, int kR, class Source, class A>
CNNEXT_INLINE void accumulate_weights(const Vec<A> (&gradient)[kRows], const Source& source,
                                      const typename Source::Tap* taps, int64_t step,
                                      WeightSums<kColumns, kR, A>& sums) {
  constexpr int kSourceRows = kR == 1 ? kRows : (kRows - 1) * kStep + kR;
  for (int i = 0; i < kRows; ++i) sums.dy += gradient[i];
#pragma GCC unroll 8
  for (int l = 0; l < kColumns; ++l) {
    if (l >= sums.count) break;
    Vec<A> values[kSourceRows];
    source.load(taps[sums.first + l], kR == 1 ? step : 1, values);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        sums.taps[l][r] = fma(values[kR == 1 ? i : i * kStep + r], gradient[i], sums.taps[l][r]);
      }
    }
  }
}

/// table[h] = source row first_row + h, or zeros where it lies outside. Unrolled, as small planes need it for every few
/// multiply-adds.
template <int count, class T>
CNNEXT_INLINE void place_rows(const PlaneShape& shape, const T* plane, const T* zeros, int64_t first_row,
                              const T** table) {
  const T* row = plane + first_row * shape.row_stride;
#pragma GCC unroll 32
  for (int h = 0; h < count; ++h, row += shape.row_stride) {
    table[h] = static_cast<uint64_t>(first_row + h) < static_cast<uint64_t>(shape.height) ? row : zeros;
  }
}

template <int kR, int kStep, int kStride, class T, class A>
void backward_weight_range(const WeightCall<T, A>& call, int64_t begin, int64_t end) {
  using V = Vec<A>;
  using Source = RowSource<kStride, T, A>;
  constexpr int kColumns = WeightBlock<kR>::kColumns, kRows = WeightBlock<kR>::kRows;
  const ConvParams& p = call.p;
  const int64_t span = (p.R - 1) * p.dilation_h + 1, table_size = (kRows - 1) * p.stride_h + span;
  Scratch<const T*, 48> row_pointers(table_size);
  ZeroRow<T> zeros(p.W);
  Source source(call.x_shape(), row_pointers.data(), table_size, zeros.data(), p.stride_w);
  RowsAhead<T> dy_ahead(p.P, p.Q, p.y_strides.h), x_ahead(p.H, p.W, p.x_strides.h);
  const StripTaps<Source> taps(source, call.positions, call.columns, p.Q, p.stride_w, V::kWidth);

  for_weight_tasks(call, begin, end, [&](const ChannelPlanes<T>& planes, V* memory) {
    for (int64_t first = 0; first < call.columns; first += kColumns) {
      WeightSums<kColumns, kR, A> sums(memory, first, call.columns);
      for (int64_t image = 0; image < planes.images; ++image) {
        const T* dy = planes.dy + image * p.y_strides.n;
        const T* x = planes.x + image * p.x_strides.n;
        source.select_plane(x);
        const bool last = image + 1 == planes.images;
        dy_ahead.select_plane(dy, last ? planes.next_dy : dy + p.y_strides.n);
        x_ahead.select_plane(x, last ? planes.next_x : x + p.x_strides.n);
        const auto block = [&](auto rows, int64_t i) {
          const T *next_dy = dy_ahead.at(i), *next_x = x_ahead.at(i * kStep);
          if constexpr (kR == 1) {
            source.select_rows(i * p.stride_h - p.pad_h, (rows - 1) * p.stride_h + span);
          } else {
            place_rows<(rows - 1) * kStep + kR>(call.x_shape(), x, zeros.data(), i * kStep - p.pad_h,
                                                row_pointers.data());
          }
          for (int64_t q = 0, strip = 0; q < p.Q; q += V::kWidth, ++strip) {
            const int lanes = static_cast<int>(min(V::kWidth, p.Q - q));
            if (q % kLine<T> == 0) {
              dy_ahead.template prefetch<rows, 1>(next_dy + q);
              x_ahead.template prefetch<rows * kStep, kStep>(next_x + q * kStep);
            }
            const T* from = dy + i * p.y_strides.h + q;
            V gradient[rows];
            for (int b = 0; b < rows; ++b, from += p.y_strides.h) {
              gradient[b] = !V::kMasksAreFree && lanes == V::kWidth ? V::load(from) : V::load(from, lanes);
            }
            accumulate_weights<rows, kStep>(gradient, source, taps.strip(strip), p.stride_h, sums);
          }
        };
        int64_t i = 0;
        for (; i + kRows <= p.P; i += kRows) block(std::integral_constant<int, kRows>{}, i);
        for (; i < p.P; ++i) block(std::integral_constant<int, 1>{}, i);
      }
      sums.write(memory, call.columns);
    }
  });
}

/// 3x3 filters on planes whose rows fit a vector.
template <class Source, class T, class A>
void backward_weight_range_narrow(const WeightCall<T, A>& call, Source& source, int64_t begin, int64_t end) {
  using V = Vec<A>;
  constexpr int kRowsPerVector = Source::kRows / Source::kVectors;
  const ConvParams& p = call.p;
  for_weight_tasks(call, begin, end, [&](const ChannelPlanes<T>& planes, V* memory) {
    WeightSums<3, 3, A> sums(memory, 0, 3);
    for (int64_t image = 0; image < planes.images; ++image) {
      const T* dy = planes.dy + image * p.y_strides.n;
      const T* x = planes.x + image * p.x_strides.n;
      source.select_plane(x);
      const auto block = [&](auto n, auto one_row, int64_t i) {
        V gradient[n];
        const int lanes = static_cast<int>(one_row ? p.Q : kRowsPerVector * p.Q);
        for (int v = 0; v < n; ++v) {
          gradient[v] = V::load(dy + (i + v * kRowsPerVector) * p.y_strides.h, lanes);
          sums.dy += gradient[v];
        }
        source.select_row(i * p.stride_h - p.pad_h);
        accumulate_narrow_weights<n, one_row>(source, gradient, sums.taps);
      };
      constexpr std::integral_constant<int, 1> kOne;
      constexpr std::integral_constant<int, kRowsPerVector == 2 ? 3 : 7> kMany;  // rows of 7 or 14, but for the last
      int64_t i = 0;
      for (; i + kMany * kRowsPerVector <= p.P; i += kMany * kRowsPerVector) block(kMany, std::false_type{}, i);
      for (; i + kRowsPerVector <= p.P; i += kRowsPerVector) block(kOne, std::false_type{}, i);
      if (i < p.P) block(kOne, std::true_type{}, i);
    }
    sums.write(memory, 3);
  });
}

template <class T, class A>
void depthwise_backward_weight_nchw(const ConvParams& p, const Parallel& parallel, const T* dy, const T* x, T* dw,
                                    T* dbias) {
  const int64_t taps = p.R * p.S;
  // With few channels the batch is divided too, or most threads would idle.
  constexpr int64_t kTasks = 32;
  const int64_t parts = min(p.N, ceil_div(kTasks, p.K));
  const bool whole = has_whole_columns<T>(p);
  const int64_t columns = whole ? p.S : taps;
  Scratch<TapPosition, 64> positions(columns);
  place_filter_columns(p, columns, positions.data());
  Scratch<A, 1024> partial(parts > 1 ? parts * p.K * (taps + 1) : 0);
  const WeightCall<T, A> call{p, dy, x, dw, dbias, positions.data(), columns, whole, parts, partial.data()};

  parallel(0, parts * p.K, depthwise_grain(ceil_div(p.N, parts) * p.P * p.Q * taps), [&](int64_t begin, int64_t end) {
    if (is_narrow_filter(p) &&
        with_narrow_source<T, A>(call.x_shape(), p.stride_w, p.Q, p.y_strides.h, p.pad_h, p.pad_w,
                                 [&](auto& source) { backward_weight_range_narrow(call, source, begin, end); })) {
      return;
    }
    if (!whole) {
      p.stride_w == 1 ? backward_weight_range<1, 1, 1>(call, begin, end)
                      : backward_weight_range<1, 1, 0>(call, begin, end);
    } else if (p.stride_h == 2) {
      dispatch_fast_filter<T>(p.R, [&](auto r) { backward_weight_range<r, 2, 2>(call, begin, end); });
    } else {
      dispatch_fast_filter<T>(p.R, [&](auto r) { backward_weight_range<r, 1, 1>(call, begin, end); });
    }
  });
  if (parts == 1) return;

  for (int64_t k = 0; k < p.K; ++k) {
    for (int64_t tap = 0; tap <= taps; ++tap) {
      A total = A(0);
      for (int64_t part = 0; part < parts; ++part) total += partial[(part * p.K + k) * (taps + 1) + tap];
      call.write(k, tap, total);
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
