// Filter gradient for narrow groups: w = 1, 2, 4 or 8 channels in and out, w less than a vector, as in
// grouped_narrow.h.
//
// Lanes are input channels. The j-th output channel of each group is spread over the group's lanes of dy by a shuffle,
// so that for every pixel
//
//   acc(t, j) += spread_j(dy(pixel)) * x(pixel moved by tap t)      holds dw(group of lane * w + j, channel of lane, t)
//
// A task owns a run of channels and one share of the images ("partial"). It walks its share in rectangles, whose x and
// dy it copies to bands, and for each vector of channels takes 3 taps at a time, with 3 w accumulators in registers: w
// shuffles and 3 loads for 3 w multiply-adds.
//
// Determinism: rectangles and partials follow from the shape alone, and partials are added in their order.
// Limit: the multiply-add rate; for w = 1 the loads.
#pragma once

#include "grouped_narrow.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Taps whose accumulators are in registers together.
constexpr int kTapsTogether = 3;
/// Tasks aimed at by splitting the images.
constexpr int64_t kNarrowWantedTasks = 32;

template <class T, class A>
class NarrowWeightGradient {
 public:
  static constexpr int64_t kWidth = Vec<A>::kWidth;

  /// `pass` is the forward pass of the convolution.
  NarrowWeightGradient(const Pass& pass, Layout layout, const T* dy, const T* x, T* dw)
      : pass_(pass),
        dy_pass_(pass_of_dy(pass)),
        x_source_(pass_, layout, x),
        dy_source_(dy_pass_, layout, dy),
        rectangles_(pass, kNarrowTaskPixels, 1, 1, kNarrowRows),
        dw_(dw),
        channels_(pass.groups * pass.in_channels) {}

  void run(const Parallel& parallel) const {
    const int64_t vectors = ceil_div(channels_, kWidth), vector_size = pass_.num_taps * pass_.in_channels * kWidth;
    const int64_t block = max(1, kNarrowTaskBytes / int64_t(sizeof(Vec<A>))), blocks = ceil_div(vectors, block);
    const int64_t partials = min(rectangles_.count(), ceil_div(kNarrowWantedTasks, blocks));
    A* sums = scratch<A>(Slot::kPartial, partials * vectors * vector_size);
    const int64_t work = ceil_div(pass_.pixels(), partials) * block * kWidth * pass_.depth();
    parallel(0, blocks * partials, grain_for(work), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t partial = task / blocks, v0 = task % blocks * block, v1 = min(vectors, v0 + block);
        A* target = sums + (partial * vectors + v0) * vector_size;
        fill_zero(target, (v1 - v0) * vector_size);
        const int64_t last = rectangles_.count() * (partial + 1) / partials;
        for (int64_t i = rectangles_.count() * partial / partials; i < last; ++i) {
          add_rectangle(rectangles_.at(i), v0 * kWidth, min(channels_, v1 * kWidth), target, vector_size);
        }
      }
    });
    parallel(0, vectors, grain_for(partials * vector_size), [&](int64_t begin, int64_t end) {
      for (int64_t v = begin; v < end; ++v) finish(sums + v * vector_size, vectors * vector_size, partials, v);
    });
  }

 private:
  /// dy is read as the input of a 1x1 pass over the same output pixels.
  static Pass pass_of_dy(const Pass& forward) {
    static constexpr Tap kCentre{0, 0, 0};
    Pass pass = forward;
    pass.in_h = forward.out_h;
    pass.in_w = forward.out_w;
    pass.step_h = pass.step_w = 1;
    pass.in_strides = forward.out_strides;
    pass.taps = &kCentre;
    pass.num_taps = 1;
    return pass;
  }

  void add_rectangle(const Rectangle& r, int64_t c_begin, int64_t c_end, A* sums, int64_t vector_size) const {
    const Band<A> x = x_source_.fill(r, c_begin, c_end - c_begin, kWidth, Slot::kBand);
    const Band<A> dy = dy_source_.fill(r, c_begin, c_end - c_begin, kWidth, Slot::kBand2);
    const int64_t taps = pass_.num_taps;
    int64_t* offsets = scratch<int64_t>(Slot::kTable, taps);
    for (int64_t t = 0; t < taps; ++t) offsets[t] = x_source_.tap_h(t) * x.pitch_h + x_source_.tap_w(t) * x.pitch_w;
    for (int64_t v = 0; v < ceil_div(c_end - c_begin, kWidth); ++v) {
      const Band<A> xv{x.base + v * x.block_pitch, 0, x.pitch_h * pass_.step_h, x.pitch_w * pass_.step_w};
      const Band<A> dyv{dy.base + v * dy.block_pitch, 0, dy.pitch_h, dy.pitch_w};
      for (int64_t t = 0; t < taps; t += kTapsTogether) {
        add_taps(r, xv, dyv, offsets + t, min(kTapsTogether, taps - t),
                 sums + v * vector_size + t * pass_.in_channels * kWidth);
      }
    }
  }

  void add_taps(const Rectangle& r, const Band<A>& x, const Band<A>& dy, const int64_t* offsets, int64_t taps,
                A* sums) const {
    switch (pass_.in_channels) {
      case 1: return add_taps_of_group<1>(r, x, dy, offsets, taps, sums);
      case 2: return add_taps_of_group<2>(r, x, dy, offsets, taps, sums);
      case 4:
        if constexpr (kWidth > 4) return add_taps_of_group<4>(r, x, dy, offsets, taps, sums);
        break;
      default:
        if constexpr (kWidth > 8) return add_taps_of_group<8>(r, x, dy, offsets, taps, sums);
    }
  }

  template <int kGroup>
  static void add_taps_of_group(const Rectangle& r, const Band<A>& x, const Band<A>& dy, const int64_t* offsets,
                                int64_t taps, A* sums) {
    if (taps == 3) {
      add<kGroup, 3>(r, x, dy, offsets, sums, std::make_index_sequence<kGroup>{});
    } else if (taps == 2) {
      add<kGroup, 2>(r, x, dy, offsets, sums, std::make_index_sequence<kGroup>{});
    } else {
      add<kGroup, 1>(r, x, dy, offsets, sums, std::make_index_sequence<kGroup>{});
    }
  }

  /// sums(t, j, lane) += over the pixels of a rectangle.
  template <int kGroup, int kTaps, size_t... kOutput>
  [[gnu::noinline]] static void add(const Rectangle& r, const Band<A>& x, const Band<A>& dy, const int64_t* offsets,
                                    A* sums, std::index_sequence<kOutput...>) {
    using V = Vec<A>;
    V acc[kTaps][kGroup];
#pragma GCC unroll 3
    for (int t = 0; t < kTaps; ++t) ((acc[t][kOutput] = V::zero()), ...);
    for (int64_t p = 0; p < r.p1 - r.p0; ++p) {
      const A* d = dy.base + p * dy.pitch_h;
      const A* in = x.base + p * x.pitch_h;
      for (int64_t q = r.width(); q > 0; --q) {
        const V values = V::load(d);
        V moved[kTaps];
#pragma GCC unroll 3
        for (int t = 0; t < kTaps; ++t) moved[t] = V::load(in + offsets[t]);
        const auto multiply = [&](int j, V spread) __attribute__((always_inline)) {
#pragma GCC unroll 3
          for (int t = 0; t < kTaps; ++t) acc[t][j] = fma(spread, moved[t], acc[t][j]);
        };
        (multiply(kOutput, shuffle(values, values, spread_indices<kGroup, kOutput>(Lanes<A>{}))), ...);
        d += dy.pitch_w;
        in += x.pitch_w;
      }
    }
#pragma GCC unroll 3
    for (int t = 0; t < kTaps; ++t) {
      A* to = sums + t * kGroup * kWidth;
      (((V::load(to + kOutput * kWidth) + acc[t][kOutput]).store(to + kOutput * kWidth)), ...);
    }
  }

  /// Adds the partials of vector v in their order, and writes them in the filter's order.
  void finish(A* sums, int64_t partial_stride, int64_t partials, int64_t v) const {
    const int64_t width = pass_.in_channels, taps = pass_.num_taps;
    for (int64_t i = 0; i < taps * width * kWidth; i += kWidth) {
      Vec<A> total = Vec<A>::load(sums + i);
      for (int64_t partial = 1; partial < partials; ++partial) {
        total += Vec<A>::load(sums + partial * partial_stride + i);
      }
      total.store(sums + i);
    }
    for (int64_t lane = 0; lane < min(kWidth, channels_ - v * kWidth); ++lane) {
      const int64_t channel = v * kWidth + lane, group = channel / width;
      for (int64_t j = 0; j < width; ++j) {
        T* to = dw_ + ((group * width + j) * width + channel % width) * taps;
        for (int64_t t = 0; t < taps; ++t) store_scalar<A>(to + t, sums[(t * width + j) * kWidth + lane]);
      }
    }
  }

  const Pass pass_, dy_pass_;
  const BandSource<T, A> x_source_, dy_source_;
  const Rectangles rectangles_;
  T* dw_;
  const int64_t channels_;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
