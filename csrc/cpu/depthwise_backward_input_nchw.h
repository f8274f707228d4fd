// Gradient of depthwise convolution with respect to its input, NCHW:
//
//   dx[n, c, h, w] = sum over j, r, s with (h + pad_h - r * dilation_h) = p * stride_h and
//                                          (w + pad_w - s * dilation_w) = q * stride_w
//                    of dy[n, c * m + j, p, q] * w[c * m + j, r, s]
//
// dx: N x C x H x W, dy: N x K x P x Q, m = K / C.
//
// The pixels of dx whose row is a modulo stride_h and whose column is b modulo stride_w form a class with taps of its
// own, at fixed distances in dy: a correlation of step 1 (depthwise_correlate_nchw.h), and nothing is tested for
// divisibility inside it. An index of the parallel loop owns a band of one plane dx[n, c], stride_h * (rows of a class)
// high. With stride_w = 2 the two classes of a row are computed side by side and interleaved in registers.
#pragma once

#include "depthwise_backward_input_nchw_stride2.h"
#include "depthwise_narrow_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// The taps of one dimension, sorted by class: tap i of a class reads dy at (index in the class) + positions[i].
class TapClasses {
 public:
  TapClasses(int64_t size, int64_t stride, int64_t pad, int64_t dilation)
      : taps_(size), positions_(size), begin_(stride + 1) {
    int64_t count = 0;
    for (int64_t residue = 0; residue < stride; ++residue) {
      begin_[residue] = count;
      for (int64_t tap = size - 1; tap >= 0; --tap) {  // positions ascending
        const int64_t distance = residue + pad - tap * dilation;
        if (distance % stride != 0) continue;
        taps_[count] = tap;
        positions_[count++] = distance / stride;
      }
    }
    begin_[stride] = count;
    first_ = last_ = positions_[0];
    for (int64_t i = 1; i < count; ++i) {
      first_ = min(first_, positions_[i]);
      last_ = max(last_, positions_[i]);
    }
  }

  int64_t count(int64_t residue) { return begin_[residue + 1] - begin_[residue]; }
  const int64_t* taps(int64_t residue) { return taps_.data() + begin_[residue]; }
  const int64_t* positions(int64_t residue) { return positions_.data() + begin_[residue]; }
  /// The least position of any class, and the number of positions from there to the greatest.
  int64_t first() const { return first_; }
  int64_t span() const { return last_ - first_ + 1; }

 private:
  Scratch<int64_t, 16> taps_, positions_, begin_;
  int64_t first_, last_;
};

/// What is the same for every plane. Class (a, b) has the filter columns first_column[a * stride_w + b] ... in
/// `positions`, and the weights first_weight[a * stride_w + b] ... of a channel's m filters, picked by weight_places.
template <class T, class A>
struct InputCall {
  const ConvParams& p;
  const T *dy, *w;
  T* dx;
  int64_t first_tap_row;  // of dy, for row 0 of a class
  int64_t table_size;     // rows of dy under a block of rows
  int64_t bands;          // of a class of rows
  const TapPosition* positions;
  const int64_t* weight_places;
  const int64_t *first_column, *first_weight;

  int64_t multiplier = p.K / p.C;

  const T* dy_plane(const BandIterator& it) const {
    return dy + it.n * p.y_strides.n + it.channel * multiplier * p.y_strides.c;
  }
  T* dx_plane(const BandIterator& it) const { return dx + it.n * p.x_strides.n + it.channel * p.x_strides.c; }
  int64_t weights() const { return multiplier * p.R * p.S; }
  PlaneShape dy_shape() const { return {p.P, p.Q, p.y_strides.h, multiplier, p.y_strides.c}; }
};

/// What a call reads and writes soon.
template <class T>
struct InputAhead {
  RowsAhead<T> dy, dx;

  explicit InputAhead(const ConvParams& p) : dy(p.P, p.Q, p.y_strides.h), dx(p.H, p.W, p.x_strides.h) {}
};

/// Calls f(a channel's weights in the order of the classes, plane of dy, plane of dx, row class a, first row in the
/// class, rows) for each band of the range.
template <class T, class A, class F>
CNNEXT_INLINE void for_input_bands(const InputCall<T, A>& call, int64_t begin, int64_t end, InputAhead<T>& ahead,
                                   const F& f) {
  const ConvParams& p = call.p;
  Scratch<A, 64> weights(call.weights());
  BandIterator it(begin, call.bands, p.C);
  for (int64_t index = begin; index < end; ++index, it.next()) {
    const int64_t c = it.channel, first = it.band * kBandRows;
    const T* w = call.w + c * call.weights();
    const BandIterator next = index + call.bands < end ? it.next_plane() : it;
    ahead.dy.select_plane(call.dy_plane(it), call.dy_plane(next));
    ahead.dx.select_plane(call.dx_plane(it), call.dx_plane(next));
    for (int64_t i = 0; i < call.weights(); ++i) weights[i] = load_scalar<A>(w + call.weight_places[i]);
    for (int64_t a = 0; a < min(p.stride_h, p.H); ++a) {
      const int64_t class_height = p.stride_h == 1 ? p.H : ceil_div(p.H - a, p.stride_h);
      const int64_t rows = min(kBandRows, class_height - first);
      if (rows <= 0) continue;
      f(weights.data(), call.dy_plane(it), call.dx_plane(it), a, first, rows);
    }
  }
}

/// Columns of dx that one vector of each class covers together.
template <int kRows, class T, class A>
CNNEXT_INLINE void store_interleaved(Vec<A> (&even)[kRows], Vec<A> (&odd)[kRows], T* dx, int64_t dx_stride,
                                     int64_t rows, int64_t width) {
  constexpr int kWidth = Vec<A>::kWidth;
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) interleave(even[i], odd[i]);
  store_rows(even, dx, dx_stride, rows, static_cast<int>(min(kWidth, width)));
  if (width > kWidth) store_rows(odd, dx + kWidth, dx_stride, rows, static_cast<int>(min(kWidth, width - kWidth)));
}

/// Stores the first lanes of acc, rows dx_stride apart and lanes `stride` apart.
template <int kRows, class T, class A>
void store_strided(const Vec<A> (&acc)[kRows], T* dx, int64_t dx_stride, int64_t rows, int64_t stride, int64_t lanes) {
  for (int64_t row = 0; row < rows; ++row) {
    A values[Vec<A>::kWidth];
    acc[row].store(values);
    for (int64_t lane = 0; lane < lanes; ++lane) store_scalar(dx + row * dx_stride + lane * stride, values[lane]);
  }
}

template <int kR, class T, class A>
void backward_input_range(const InputCall<T, A>& call, int64_t begin, int64_t end) {
  using V = Vec<A>;
  using Source = RowSource<1, T, A>;
  const ConvParams& p = call.p;
  const int64_t class_width = ceil_div(p.W, p.stride_w), classes = p.stride_h * p.stride_w;
  Scratch<const T*, 48> row_pointers(call.multiplier * call.table_size);
  ZeroRow<T> zeros(p.Q);
  Source source(call.dy_shape(), row_pointers.data(), call.table_size, zeros.data(), 1);
  // All classes at once: those of class i begin at first_column[i] of each strip.
  const StripTaps<Source> taps(source, call.positions, call.first_column[classes], class_width, 1, V::kWidth);
  InputAhead<T> ahead(p);

  for_input_bands(
      call, begin, end, ahead, [&](const A* weights, const T* dy, T* dx, int64_t a, int64_t first, int64_t height) {
        source.select_plane(dy);
        const int64_t dx_stride = p.stride_h * p.x_strides.h;
        for_row_blocks(height, [&](auto block_rows, int64_t i, int64_t rows) {
          source.select_rows(call.first_tap_row + first + i, call.table_size - (kRowBlock - block_rows));
          const T *next_dy = ahead.dy.at(first + i), *next_dx = ahead.dx.at(first + i);
          T* out = dx + a * p.x_strides.h + (first + i) * dx_stride;
          for (int64_t j = 0, strip = 0; j < class_width; j += V::kWidth, ++strip) {
            if (ahead.dx.worthwhile() && a == 0 && j % kLine<T> == 0) {
              ahead.dy.template prefetch<block_rows, 1>(next_dy + j);
              if (classes == 1) ahead.dx.template prefetch<block_rows, 1>(next_dx + j);
            }
            const auto accumulate = [&](int64_t b, V(&acc)[block_rows]) {
              const int64_t id = a * p.stride_w + b, column = call.first_column[id];
              for (int row = 0; row < block_rows; ++row) acc[row] = V::zero();
              accumulate_columns<block_rows, kR, 1>(source, taps.strip(strip) + column,
                                                    call.first_column[id + 1] - column,
                                                    Weights<A>{weights + call.first_weight[id], kR, 1}, 1, acc);
            };
            V acc[block_rows];
            if (p.stride_w == 1) {
              accumulate(0, acc);
              store_rows(acc, out + j, dx_stride, rows, static_cast<int>(min(V::kWidth, class_width - j)));
            } else if (kR == 1 && p.stride_w == 2) {
              V odd[block_rows];
              accumulate(0, acc);
              accumulate(1, odd);
              store_interleaved(acc, odd, out + 2 * j, dx_stride, rows, p.W - 2 * j);
            } else if (kR == 1) {
              for (int64_t b = 0; b < min(p.stride_w, p.W); ++b) {
                accumulate(b, acc);
                const int64_t lanes = min(V::kWidth, ceil_div(p.W - b, p.stride_w) - j);
                store_strided(acc, out + j * p.stride_w + b, dx_stride, rows, p.stride_w, lanes);
              }
            }
          }
        });
      });
}

/// Stride 1 and 3x3 filters on planes whose rows fit a vector.
template <class Source, class T, class A>
void backward_input_range_narrow(const InputCall<T, A>& call, Source& source, int64_t begin, int64_t end) {
  using V = Vec<A>;
  const ConvParams& p = call.p;
  InputAhead<T> ahead(p);
  for_input_bands(call, begin, end, ahead,
                  [&](const A* weights, const T* dy, T* dx, int64_t, int64_t first, int64_t height) {
                    source.select_plane(dy);
                    for_narrow_blocks<Source>(height, [&](auto n, int64_t i, int64_t rows) {
                      source.select_row(call.first_tap_row + first + i);
                      V acc[n];
                      for (int v = 0; v < n; ++v) acc[v] = V::zero();
                      correlate_narrow(source, Weights<A>{weights, 3, 1}, acc);
                      store_narrow<Source>(acc, dx + (first + i) * p.x_strides.h, p.x_strides.h, rows, p.W);
                    });
                  });
}

template <class T, class A>
void depthwise_backward_input_nchw(const ConvParams& p, const Parallel& parallel, const T* dy, const T* w, T* dx) {
  if (suits_backward_input_stride2<T>(p)) {
    if constexpr (kMaxFastFilter<T> >= 3) return depthwise_backward_input_nchw_stride2<T, A>(p, parallel, dy, w, dx);
  }
  const int64_t multiplier = p.K / p.C, taps = p.R * p.S, classes = p.stride_h * p.stride_w;
  TapClasses row_taps(p.R, p.stride_h, p.pad_h, p.dilation_h), column_taps(p.S, p.stride_w, p.pad_w, p.dilation_w);
  const int64_t bands = ceil_div(ceil_div(p.H, p.stride_h), kBandRows), table_size = kRowBlock - 1 + row_taps.span();
  const bool whole = classes == 1 && p.dilation_h == 1 && is_fast_filter<T>(p.R);

  Scratch<TapPosition, 64> positions(multiplier * taps);
  Scratch<int64_t, 64> weight_places(multiplier * taps);
  Scratch<int64_t, 16> first_column(classes + 1), first_weight(classes + 1);
  int64_t column = 0, weight = 0;
  for (int64_t id = 0; id < classes; ++id) {
    const int64_t a = id / p.stride_w, b = id % p.stride_w;
    first_column[id] = column;
    first_weight[id] = weight;
    for (int64_t j = 0; j < multiplier; ++j) {
      for (int64_t l = 0; l < column_taps.count(b); ++l) {
        for (int64_t i = 0; i < row_taps.count(a); ++i) {
          if (i == 0 || !whole) {
            const int64_t row = row_taps.positions(a)[i] - row_taps.first();
            positions[column++] = {j * table_size + row, column_taps.positions(b)[l]};
          }
          weight_places[weight++] = j * taps + row_taps.taps(a)[i] * p.S + column_taps.taps(b)[l];
        }
      }
    }
  }
  first_column[classes] = column;

  const InputCall<T, A> call{p,
                             dy,
                             w,
                             dx,
                             row_taps.first(),
                             table_size,
                             bands,
                             positions.data(),
                             weight_places.data(),
                             first_column.data(),
                             first_weight.data()};
  const int64_t work = multiplier * min(kBandRows, ceil_div(p.H, p.stride_h)) * ceil_div(p.W, p.stride_w) * taps;
  parallel(0, p.N * p.C * bands, depthwise_grain(work), [&](int64_t begin, int64_t end) {
    if (is_narrow_filter(p) && p.stride_h == 1 &&
        with_narrow_source<T, A>(call.dy_shape(), 1, p.W, p.x_strides.h, p.R - 1 - p.pad_h, p.S - 1 - p.pad_w,
                                 [&](auto& source) { backward_input_range_narrow(call, source, begin, end); })) {
      return;
    }
    if (!whole) {
      backward_input_range<1>(call, begin, end);
    } else {
      dispatch_fast_filter<T>(p.R, [&](auto r) { backward_input_range<r>(call, begin, end); });
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
