// Forward pass and input gradient for narrow groups: w = 1, 2, 4 or 8 channels in and out, w less than a vector.
//
// A vector holds the same channels of one pixel, those of several groups, on the input and the output side. The c-th
// channel of each group is spread over the group's lanes by a shuffle, so that
//
//   acc(pixel) += spread_c(x(pixel moved by tap t)) * filter(t, c)        for c = 0 .. w - 1
//
// is w whole-vector multiply-adds a tap, none of them wasted. A task owns a rectangle of pixels of an image and a run of
// channels; a tile is 8 pixels, which share the filter vectors in registers. Channels-first input and output are turned in
// scratch, as in grouped_pixel_rows.h.
//
// Limit: the multiply-add rate, with one shuffle to each multiply-add: about 3/4 of it where both share an execution port.
#pragma once

#include "activation.h"
#include "grouped_pixel_table.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Pixels of a tile: chains of dependent multiply-adds enough to hide their latency.
constexpr int kNarrowRows = 8;
/// Pixels of a task: more than for wide groups, since the filter is small and neighbouring rectangles copy common rows.
constexpr int64_t kNarrowTaskPixels = 384;
/// Channels of a task, in bytes of accumulators.
constexpr int64_t kNarrowTaskBytes = 512;

template <size_t kGroup, size_t kChannel, size_t... kLane>
constexpr auto spread_indices(std::index_sequence<kLane...>) {
  return std::index_sequence<(kLane / kGroup * kGroup + kChannel)...>{};
}

/// acc += sum over c of spread_c(x) * filter[c].
template <int kGroup, class A, size_t... kChannel>
CNNEXT_INLINE Vec<A> multiply_spread(Vec<A> x, const Vec<A>* filter, Vec<A> acc, std::index_sequence<kChannel...>) {
  ((acc = fma(shuffle(x, x, spread_indices<kGroup, kChannel>(Lanes<A>{})), filter[kChannel], acc)), ...);
  return acc;
}

template <class T, class A>
class NarrowPass {
 public:
  static constexpr int64_t kWidth = Vec<A>::kWidth;

  NarrowPass(const Pass& pass, Layout layout, const T* in, const A* bias, T* out)
      : pass_(pass),
        planar_(layout == Layout::kNCHW),
        table_(pass, layout, in, kNarrowRows, false),
        bias_(bias),
        out_(out),
        channels_(pass.groups * pass.in_channels) {}

  void run(const Parallel& parallel, const T* filter) {
    const int64_t width = pass_.in_channels, vectors = ceil_div(channels_, kWidth);
    filter_vector_ = pass_.num_taps * width * kWidth;
    A* spread = scratch<A>(Slot::kFilter, vectors * filter_vector_);
    filter_ = spread;
    parallel(0, vectors, max(1, 16384 / max(1, filter_vector_)), [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) spread_filter(filter, v, spread + v * filter_vector_);
    });

    const int64_t block = max(1, kNarrowTaskBytes / int64_t(sizeof(Vec<A>))), blocks = ceil_div(vectors, block);
    const Rectangles rectangles(pass_, kNarrowTaskPixels, blocks, parallel.num_threads(), kNarrowRows);
    const int64_t work = rectangles.largest_pixels() * min(channels_, block * kWidth) * pass_.depth();
    parallel(0, rectangles.count() * blocks, grain_for(work), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t c0 = task % blocks * block * kWidth;
        run_rectangle(rectangles.at(task / blocks), c0, min(channels_, c0 + block * kWidth));
      }
    });
  }

  /// Whether this machine's vectors hold several groups of `pass`.
  static bool takes(const Pass& pass) {
    const int64_t w = pass.in_channels;
    return w == pass.out_channels && w < kWidth && w <= 8 && kWidth % w == 0 && pass.groups > 1;
  }

 private:
  /// Vector v of the filter as (t, c, lane): lane l belongs to output channel v * kWidth + l.
  void spread_filter(const T* filter, int64_t v, A* to) const {
    const int64_t width = pass_.in_channels;
    for (int64_t l = 0; l < kWidth; ++l) {
      const int64_t m = v * kWidth + l;
      const T* from = filter + m / width * pass_.filter_group + m % width * pass_.filter_m;
      for (int64_t t = 0; t < pass_.num_taps; ++t) {
        for (int64_t c = 0; c < width; ++c) {
          to[(t * width + c) * kWidth + l] =
              m < channels_ ? load_scalar<A>(from + c * pass_.filter_c + pass_.taps[t].index) : A(0);
        }
      }
    }
  }

  void run_rectangle(const Rectangle& r, int64_t c_begin, int64_t c_end) const {
    const int64_t pixels = r.pixels();
    const A** rows = scratch<const A*>(Slot::kTable, table_.size(r));
    table_.locate(r, c_begin, c_end - c_begin, rows);
    A* partial = planar_ ? scratch<A>(Slot::kOutput, table_.tiles(r) * kNarrowRows * kWidth) : nullptr;
    T** targets = scratch<T*>(Slot::kTargets, pixels);
    if (!planar_) {
      const Strides4& s = pass_.out_strides;
      int64_t i = 0;
      for (int64_t p = r.p0; p < r.p1; ++p) {
        for (int64_t q = r.q0; q < r.q1; ++q) targets[i++] = out_ + r.n * s.n + p * s.h + q * s.w;
      }
    }
    for (int64_t c = c_begin; c < c_end; c += kWidth) {
      const int lanes = static_cast<int>(min(kWidth, c_end - c));
      const A* filter = filter_ + c / kWidth * filter_vector_;
      Vec<A> bias = Vec<A>::zero();
      if (bias_ != nullptr) bias = Vec<A>::load(bias_ + c, lanes);
      for (int64_t i = 0; i < pixels; i += kNarrowRows) {
        Vec<A> acc[kNarrowRows];
        run_tile(rows + i * pass_.num_taps, c - c_begin, lanes, filter, acc);
        const int count = static_cast<int>(min(kNarrowRows, pixels - i));
        for (int j = 0; j < count; ++j) {
          const Vec<A> value = activate(acc[j] + bias, pass_.activation);
          if (planar_) {
            value.store(partial + (i + j) * kWidth);
          } else if (lanes == kWidth) {
            value.store(targets[i + j] + c);
          } else {
            value.store(targets[i + j] + c, lanes);
          }
        }
      }
      if (planar_) store_planar(pass_, r, partial, kWidth, lanes, out_ + c * pass_.out_strides.c);
    }
  }

  void run_tile(const A* const* rows, int64_t offset, int lanes, const A* filter, Vec<A>* acc) const {
    const bool whole = lanes == kWidth;
    switch (pass_.in_channels) {
      case 1:
        return whole ? tile<1, true>(rows, offset, lanes, filter, acc) : tile<1, false>(rows, offset, lanes, filter, acc);
      case 2:
        return whole ? tile<2, true>(rows, offset, lanes, filter, acc) : tile<2, false>(rows, offset, lanes, filter, acc);
      case 4:
        if constexpr (kWidth >= 4) {
          return whole ? tile<4, true>(rows, offset, lanes, filter, acc)
                       : tile<4, false>(rows, offset, lanes, filter, acc);
        }
        break;
      default:
        if constexpr (kWidth >= 8) {
          return whole ? tile<8, true>(rows, offset, lanes, filter, acc)
                       : tile<8, false>(rows, offset, lanes, filter, acc);
        }
    }
  }

  /// The sums of kNarrowRows pixels; rows(t, pixel) + offset is the input. kWhole: all lanes of the input may be read.
  template <int kGroup, bool kWhole>
  [[gnu::noinline]] void tile(const A* const* rows, int64_t offset, int lanes, const A* filter, Vec<A>* result) const {
    using V = Vec<A>;
    V acc[kNarrowRows];
#pragma GCC unroll 8
    for (int i = 0; i < kNarrowRows; ++i) acc[i] = V::zero();
    for (int64_t t = pass_.num_taps; t > 0; --t) {
      V f[kGroup];
#pragma GCC unroll 8
      for (int c = 0; c < kGroup; ++c) f[c] = V::load(filter + c * kWidth);
#pragma GCC unroll 8
      for (int i = 0; i < kNarrowRows; ++i) {
        const V x = kWhole ? V::load(rows[i] + offset) : V::load(rows[i] + offset, lanes);
        acc[i] = multiply_spread<kGroup, A>(x, f, acc[i], std::make_index_sequence<kGroup>{});
      }
      rows += kNarrowRows;
      filter += kGroup * kWidth;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kNarrowRows; ++i) result[i] = acc[i];
  }

  const Pass pass_;
  const bool planar_;
  const PixelTable<T, A> table_;
  const A* bias_;
  T* out_;
  const int64_t channels_;
  const A* filter_ = nullptr;
  int64_t filter_vector_ = 0;
};

/// Runs one pass that NarrowPass takes. `bias` holds accumulators, or is null.
template <class T, class A>
void run_narrow(const Pass& pass, Layout layout, const Parallel& parallel, const T* in, const T* filter, const A* bias,
                T* out) {
  NarrowPass<T, A>(pass, layout, in, bias, out).run(parallel, filter);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
