// Forward pass and input gradient for narrow groups: w = 1, 2, 4 or 8 channels in and out, w less than a vector.
//
// A vector holds the same channels of one pixel, those of several groups, on the input and the output side. The c-th
// channel of each group is spread over the group's lanes by a shuffle, so that
//
//   acc(pixel) += spread_c(x(pixel moved by tap t)) * filter(t, c)        for c = 0 .. w - 1
//
// is w whole-vector multiply-adds a tap, none of them wasted. A task owns a rectangle of pixels of an image and a run
// of channels, and copies the input that it reaches to a band of scratch (grouped_pixel_table.h), one block a vector,
// so that all taps of a pixel are at fixed offsets. A tile is 8 pixels, which share the filter vectors in registers.
//
// Limit: the multiply-add rate (one shuffle accompanies each multiply-add, on another port); with w = 4 and less, and
// images larger than the caches, reading and writing memory.
#pragma once

#include "activation.h"
#include "grouped_pixel_table.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Pixels of a tile: chains of dependent multiply-adds enough to hide their latency.
constexpr int kNarrowRows = 8;
/// Pixels whose input is in registers at once.
#if defined(CNNEXT_AVX512)
constexpr int kTogether = 8;
#else
constexpr int kTogether = 4;
#endif
/// Pixels of a task: more than for wide groups, since the filter is small and neighbouring rectangles copy common rows.
constexpr int64_t kNarrowTaskPixels = 512;
/// Channels of a task, in bytes of accumulators: its band stays in L2.
constexpr int64_t kNarrowTaskBytes = 512;

template <size_t kGroup, size_t kChannel, size_t... kLane>
constexpr auto spread_indices(std::index_sequence<kLane...>) {
  return std::index_sequence<(kLane / kGroup * kGroup + kChannel)...>{};
}

/// acc[i] += sum over c of spread_c(x[i]) * filter[c], c outermost: each multiply-add depends on one kCount earlier.
template <int kGroup, int kCount, class A, size_t... kChannel>
CNNEXT_INLINE void multiply_spread(const Vec<A>* x, const A* filter, Vec<A>* acc, std::index_sequence<kChannel...>) {
  const auto multiply = [&](auto indices, Vec<A> f) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) acc[i] = fma(shuffle(x[i], x[i], indices), f, acc[i]);
  };
  (multiply(spread_indices<kGroup, kChannel>(Lanes<A>{}), Vec<A>::load(filter + kChannel * Vec<A>::kWidth)), ...);
}

template <class T, class A>
class NarrowPass {
 public:
  static constexpr int64_t kWidth = Vec<A>::kWidth;

  NarrowPass(const Pass& pass, Layout layout, const T* in, const A* bias, T* out)
      : pass_(pass),
        planar_(layout == Layout::kNCHW),
        source_(pass, layout, in),
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
    const Band<A> band = source_.fill(r, c_begin, c_end - c_begin, kWidth, Slot::kBand);
    int64_t* tap_offsets = scratch<int64_t>(Slot::kTable, pass_.num_taps);
    for (int64_t t = 0; t < pass_.num_taps; ++t) {
      tap_offsets[t] = source_.tap_h(t) * band.pitch_h + source_.tap_w(t) * band.pitch_w;
    }
    const Strides4& s = pass_.out_strides;
    T* out = out_ + r.n * s.n + c_begin * s.c;
    if constexpr (std::is_same_v<T, A>) {
      if (!planar_ && (c_end - c_begin) % kWidth == 0) {
        run_tiles(r, band, tap_offsets, c_begin, c_end, out + r.p0 * s.h + r.q0 * s.w, s.h, s.w, kWidth);
        return;
      }
    }
    // Through scratch, (vector, pixel, lane).
    const int64_t pitch = r.pixels() * kWidth;
    A* partial = scratch<A>(Slot::kOutput, ceil_div(c_end - c_begin, kWidth) * pitch);
    run_tiles(r, band, tap_offsets, c_begin, c_end, partial, r.width() * kWidth, kWidth, pitch);
    for (int64_t c = 0; c < c_end - c_begin; c += kWidth, partial += pitch) {
      const int64_t lanes = min(kWidth, c_end - c_begin - c);
      if (planar_) {
        store_planar(pass_, r, partial, kWidth, lanes, out_ + (c_begin + c) * s.c);
        continue;
      }
      const A* value = partial;
      for (int64_t p = r.p0; p < r.p1; ++p) {
        for (int64_t q = r.q0; q < r.q1; ++q, value += kWidth) copy_run(value, 1, out + p * s.h + q * s.w + c, lanes);
      }
    }
  }

  /// All tiles of a rectangle: vector v of pixel (p, q) goes to out + v * out_vector + p * out_h + q * out_w, counted
  /// from the first. Vectors are the inner loop, so that a pixel's channels are read and written together.
  void run_tiles(const Rectangle& r, const Band<A>& band, const int64_t* tap_offsets, int64_t c_begin, int64_t c_end,
                 A* out, int64_t out_h, int64_t out_w, int64_t out_vector) const {
    // From the end of a row of the rectangle to the start of the next.
    const int64_t in_step = pass_.step_w * band.pitch_w, in_wrap = pass_.step_h * band.pitch_h - r.width() * in_step;
    const int64_t out_wrap = out_h - r.width() * out_w;
    alignas(64) A surplus[kWidth];  // what a last tile computes for pixels that it lacks
    const A* in = band.base;
    const A* x[kNarrowRows];
    A* y[kNarrowRows];
    int64_t q = r.q0;
    for (int64_t left = r.pixels(); left > 0; left -= kNarrowRows) {
      const int count = static_cast<int>(min(kNarrowRows, left));
      for (int j = 0; j < count; ++j) {
        x[j] = in;
        y[j] = out;
        in += in_step;
        out += out_w;
        if (++q == r.q1) {
          q = r.q0;
          in += in_wrap;
          out += out_wrap;
        }
      }
      for (int j = count; j < kNarrowRows; ++j) x[j] = x[0];
      for (int64_t c = c_begin; c < c_end; c += kWidth) {
        for (int j = count; j < kNarrowRows; ++j) y[j] = surplus;
        const int lanes = static_cast<int>(min(kWidth, c_end - c));
        const Vec<A> bias = bias_ == nullptr ? Vec<A>::zero() : Vec<A>::load(bias_ + c, lanes);
        run_tile(x, tap_offsets, filter_ + c / kWidth * filter_vector_, bias, y);
        for (int j = 0; j < kNarrowRows; ++j) x[j] += band.block_pitch;
        for (int j = 0; j < count; ++j) y[j] += out_vector;
      }
    }
  }

  void run_tile(const A* const* in, const int64_t* tap_offsets, const A* filter, Vec<A> bias, A* const* out) const {
    switch (pass_.in_channels) {
      case 1: return tile<1>(in, tap_offsets, filter, bias, out);
      case 2: return tile<2>(in, tap_offsets, filter, bias, out);
      case 4:
        if constexpr (kWidth > 4) return tile<4>(in, tap_offsets, filter, bias, out);
        break;
      default:
        if constexpr (kWidth > 8) return tile<8>(in, tap_offsets, filter, bias, out);
    }
  }

  /// kNarrowRows pixels of output, whose tap t reads in[pixel] + tap_offsets[t].
  template <int kGroup>
  [[gnu::noinline]] void tile(const A* const* in, const int64_t* tap_offsets, const A* filter, Vec<A> bias,
                              A* const* out) const {
    using V = Vec<A>;
    const A* x[kNarrowRows];
    V acc[kNarrowRows];
#pragma GCC unroll 8
    for (int i = 0; i < kNarrowRows; ++i) {
      x[i] = in[i];
      acc[i] = V::zero();
    }
    for (int64_t t = 0; t < pass_.num_taps; ++t) {
      const int64_t offset = tap_offsets[t];
#pragma GCC unroll 2
      for (int i = 0; i < kNarrowRows; i += kTogether) {
        V values[kTogether];
#pragma GCC unroll 8
        for (int j = 0; j < kTogether; ++j) values[j] = V::load(x[i + j] + offset);
        multiply_spread<kGroup, kTogether, A>(values, filter, acc + i, std::make_index_sequence<kGroup>{});
      }
      filter += kGroup * kWidth;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kNarrowRows; ++i) activate(acc[i] + bias, pass_.activation).store(out[i]);
  }

  const Pass pass_;
  const bool planar_;
  const BandSource<T, A> source_;
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
