// Forward pass for at most 11 output pixels (squeeze-and-excitation layers, classifiers written as 1x1 convolutions): a
// matrix times a few vectors.
//
// The inputs of every pixel are gathered once, (pixel, c, t), in the order of the filter's rows. A task owns some
// output channels: for 4 filter rows at a time it walks the depth in vectors, each loaded once for 4 pixels, and adds
// the lanes up at the end. 16-bit filters are converted as they are loaded.
//
// Limit: reading the filter once.
#pragma once

#include "activation.h"
#include "grouped_pass.h"

namespace cnnext::cpu::CNNEXT_ISA {

constexpr int kMostFewPixels = 11;
/// Pixels and filter rows of a tile.
constexpr int kFewPixelColumns = 4, kFewPixelRows = 4;

template <class T, class A>
class FewPixelsPass {
 public:
  static constexpr int64_t kWidth = Vec<A>::kWidth;

  FewPixelsPass(const Pass& pass, const T* filter, const A* bias, T* out)
      : pass_(pass), filter_(filter), bias_(bias), out_(out), pitch_(ceil_div(pass.depth(), kWidth) * kWidth) {}

  static bool takes(const Pass& pass) { return pass.rows_contiguous && pass.pixels() <= kMostFewPixels; }

  void run(const Parallel& parallel, const T* in) {
    const int64_t pixels = pass_.pixels();
    A* gathered = scratch<A>(Slot::kPanel, pass_.groups * pixels * pitch_);
    gathered_ = gathered;
    for (int64_t g = 0; g < pass_.groups; ++g) {
      for (int64_t i = 0; i < pixels; ++i) gather(in, g, i, gathered + (g * pixels + i) * pitch_);
    }
    const int64_t tiles = ceil_div(pass_.out_channels, kFewPixelRows);
    const int64_t grain = grain_for(kFewPixelRows * pixels * pass_.depth());
    parallel(0, pass_.groups * tiles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) run_tile(tile / tiles, tile % tiles * kFewPixelRows);
    });
  }

 private:
  void gather(const T* in, int64_t group, int64_t pixel, A* to) const {
    const int64_t image = pass_.out_h * pass_.out_w, n = pixel / image;
    const int64_t h0 = pixel % image / pass_.out_w * pass_.step_h, w0 = pixel % pass_.out_w * pass_.step_w;
    const Strides4& s = pass_.in_strides;
    const T* from = in + n * s.n + group * pass_.in_channels * s.c;
    fill_zero(to, pitch_);
    for (int64_t t = 0; t < pass_.num_taps; ++t) {
      const int64_t h = h0 + pass_.taps[t].dh, w = w0 + pass_.taps[t].dw;
      if (h < 0 || h >= pass_.in_h || w < 0 || w >= pass_.in_w) continue;
      scatter_channels(from + h * s.h + w * s.w, s.c, to + t);
    }
  }

  void scatter_channels(const T* from, int64_t step, A* to) const {
    const int64_t taps = pass_.num_taps;
    if (taps == 1) {
      copy_run(from, step, to, pass_.in_channels);
    } else {
      for (int64_t c = 0; c < pass_.in_channels; ++c) to[c * taps] = load_scalar<A>(from + c * step);
    }
  }

  void run_tile(int64_t group, int64_t m0) const {
    const int64_t rows = min(kFewPixelRows, pass_.out_channels - m0), depth = pass_.depth(), pixels = pass_.pixels();
    const T* w[kFewPixelRows];
    // A tile of fewer rows repeats its last.
    for (int i = 0; i < kFewPixelRows; ++i) {
      w[i] = filter_ + group * pass_.filter_group + (m0 + min(i, rows - 1)) * pass_.filter_m;
    }
    for (int64_t i = 0; i < pixels; i += kFewPixelColumns) {
      A sums[kFewPixelColumns][kFewPixelRows];
      const A* x = gathered_ + (group * pixels + i) * pitch_;
      const int64_t count = min(kFewPixelColumns, pixels - i);
      switch (count) {
        case 1: multiply<1>(w, x, depth, sums); break;
        case 2: multiply<2>(w, x, depth, sums); break;
        case 3: multiply<3>(w, x, depth, sums); break;
        default: multiply<4>(w, x, depth, sums);
      }
      for (int64_t j = 0; j < count; ++j) store_pixel(i + j, group * pass_.out_channels + m0, rows, sums[j]);
    }
  }

  /// Outputs m .. m + rows of a pixel.
  void store_pixel(int64_t pixel, int64_t m, int64_t rows, const A* sums) const {
    const Strides4& s = pass_.out_strides;
    const int64_t n = pixel / (pass_.out_h * pass_.out_w), p = pixel / pass_.out_w % pass_.out_h;
    T* out = out_ + n * s.n + p * s.h + pixel % pass_.out_w * s.w;
    for (int64_t j = 0; j < rows; ++j) {
      const Vec<A> value(sums[j] + (bias_ == nullptr ? A(0) : bias_[m + j]));
      store_scalar<A>(out + (m + j) * s.c, activate(value, pass_.activation).first());
    }
  }

  template <int kPixels>
  void multiply(const T* const* w, const A* x, int64_t depth, A (*sums)[kFewPixelRows]) const {
    using V = Vec<A>;
    V acc[kPixels][kFewPixelRows];
    for (int i = 0; i < kPixels; ++i) {
      for (int j = 0; j < kFewPixelRows; ++j) acc[i][j] = V::zero();
    }
    const auto step = [&](int64_t d, auto load) __attribute__((always_inline)) {
      V values[kPixels];
#pragma GCC unroll 4
      for (int i = 0; i < kPixels; ++i) values[i] = V::load(x + i * pitch_ + d);
#pragma GCC unroll 4
      for (int j = 0; j < kFewPixelRows; ++j) {
        const V row = load(w[j] + d);
#pragma GCC unroll 4
        for (int i = 0; i < kPixels; ++i) acc[i][j] = fma(row, values[i], acc[i][j]);
      }
    };
    int64_t d = 0;
    for (; d + kWidth <= depth; d += kWidth) step(d, [](const T* p) { return V::load(p); });
    if (d < depth) step(d, [lanes = static_cast<int>(depth - d)](const T* p) { return V::load(p, lanes); });
    for (int i = 0; i < kPixels; ++i) {
      for (int j = 0; j < kFewPixelRows; ++j) sums[i][j] = sum(acc[i][j]);
    }
  }

  const Pass pass_;
  const T* filter_;
  const A* bias_;
  T* out_;
  const int64_t pitch_;
  const A* gathered_ = nullptr;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
