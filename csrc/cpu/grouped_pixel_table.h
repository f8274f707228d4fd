// Where the pixels of a task read their input: for each output pixel and tap, a pointer to the channels of one input pixel.
//
// A task owns a rectangle of output pixels of one image. Channels-last input of the accumulator type is read in place;
// other input (channels-first, 16-bit) is first copied, the rows and columns that the rectangle reaches, to a "band" of
// channels-last accumulators in scratch. A pixel outside the image reads a row of zeros.
//
// Inputs of few channels (the first layer of a network) merge the taps of a filter row: with a band that holds the padding
// too, the S taps x C channels of a row are one contiguous run of S * C, worth walking as one segment.
#pragma once

#include "grouped_pass.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Output pixels (n, p0 .. p1, q0 .. q1), numbered row by row.
struct Rectangle {
  int64_t n, p0, p1, q0, q1;

  int64_t width() const { return q1 - q0; }
  int64_t pixels() const { return (p1 - p0) * (q1 - q0); }
};

/// A cut of all output pixels into rectangles of whole rows, or of parts of one row.
class Rectangles {
 public:
  /// About `task_pixels` pixels each; fewer if that lets `threads` finish together, `repeats` being the tasks for each
  /// rectangle.
  Rectangles(const Pass& pass, int64_t task_pixels, int64_t repeats, int64_t threads, int64_t unit_pixels)
      : out_h_(pass.out_h), out_w_(pass.out_w), images_(pass.N) {
    const bool whole_rows = out_w_ <= task_pixels;
    const int64_t extent = whole_rows ? out_h_ : out_w_;  // what is cut
    const int64_t others = images_ * repeats * (whole_rows ? 1 : out_h_);
    const int64_t unit = whole_rows ? 1 : unit_pixels;
    const int64_t largest = whole_rows ? min(out_h_, max(1, task_pixels / out_w_)) : task_pixels;
    const int64_t smallest = min(largest, whole_rows ? max(1, 24 / out_w_) : 4 * unit_pixels);
    int64_t best = largest, best_cost = INT64_MAX;
    for (int64_t size = largest; size >= smallest; size -= unit) {
      const int64_t cost = ceil_div(others * ceil_div(extent, size), threads) * size;
      if (cost < best_cost) {
        best = size;
        best_cost = cost;
      }
    }
    rows_ = whole_rows ? best : 1;
    columns_ = whole_rows ? out_w_ : best;
    count_h_ = ceil_div(out_h_, rows_);
    count_w_ = ceil_div(out_w_, columns_);
  }

  int64_t count() const { return images_ * count_h_ * count_w_; }
  int64_t largest_pixels() const { return rows_ * columns_; }
  Rectangle at(int64_t index) const {
    const int64_t p0 = index / count_w_ % count_h_ * rows_, q0 = index % count_w_ * columns_;
    return {index / (count_h_ * count_w_), p0, min(out_h_, p0 + rows_), q0, min(out_w_, q0 + columns_)};
  }

 private:
  int64_t out_h_, out_w_, images_;
  int64_t rows_, columns_, count_h_, count_w_;
};

template <class T, class A>
class PixelTable {
 public:
  /// `tile_rows` pixels are neighbours in the table: pointer (pixel, segment) is at
  /// (pixel / tile_rows * segments + segment) * tile_rows + pixel % tile_rows.
  PixelTable(const Pass& pass, Layout layout, const T* in, int64_t tile_rows, bool may_merge)
      : pass_(pass), in_(in), tile_rows_(tile_rows), planar_(layout == Layout::kNCHW) {
    reach_h0_ = reach_w0_ = INT64_MAX;
    reach_h1_ = reach_w1_ = INT64_MIN;
    for (int64_t t = 0; t < pass.num_taps; ++t) {
      reach_h0_ = min(reach_h0_, pass.taps[t].dh);
      reach_h1_ = max(reach_h1_, pass.taps[t].dh);
      reach_w0_ = min(reach_w0_, pass.taps[t].dw);
      reach_w1_ = max(reach_w1_, pass.taps[t].dw);
    }
    if (may_merge && pass.rows_contiguous && pass.in_channels < kMergeChannels) merge_taps();
    band_ = planar_ || taps_merged_ > 1 || !std::is_same_v<T, A>;
  }

  int64_t segments() const { return pass_.num_taps / taps_merged_; }
  /// Taps of one segment: neighbours in a filter row.
  int64_t taps_merged() const { return taps_merged_; }
  int64_t tiles(const Rectangle& r) const { return ceil_div(r.pixels(), tile_rows_); }
  /// Pointers of a rectangle.
  int64_t size(const Rectangle& r) const { return tiles(r) * tile_rows_ * segments(); }

  /// Fills the table for input channels c0 .. c0 + channels. Valid until this thread's next call.
  void locate(const Rectangle& r, int64_t c0, int64_t channels, const A** table) const {
    const Strides4& in = pass_.in_strides;
    const T* image = in_ + r.n * in.n + c0 * in.c;
    const A* base = nullptr;  // of input pixel (h0, w0)
    int64_t h0 = 0, w0 = 0, pitch_h = in.h, pitch_w = in.w;
    if (band_ && pass_.num_taps > 0) {
      h0 = r.p0 * pass_.step_h + reach_h0_;
      w0 = r.q0 * pass_.step_w + reach_w0_;
      int64_t h1 = (r.p1 - 1) * pass_.step_h + reach_h1_ + 1, w1 = (r.q1 - 1) * pass_.step_w + reach_w1_ + 1;
      if (taps_merged_ == 1) {  // padding comes from the row of zeros
        h0 = min(pass_.in_h, max(0, h0));
        w0 = min(pass_.in_w, max(0, w0));
        h1 = max(h0, min(pass_.in_h, h1));
        w1 = max(w0, min(pass_.in_w, w1));
      }
      pitch_w = channels;
      pitch_h = (w1 - w0) * pitch_w;
      A* band = scratch<A>(Slot::kBand, (h1 - h0) * pitch_h);
      fill_band(image, channels, h0, h1, w0, w1, band);
      base = band;
    } else if constexpr (std::is_same_v<T, A>) {
      base = image;
    }

    const A* outside = zeros<A>(channels);
    const int64_t segments = this->segments(), slots = tiles(r) * tile_rows_;
    for (int64_t s = 0; s < segments; ++s) {
      const Tap& tap = pass_.taps[s * taps_merged_];
      const A** slot = table + s * tile_rows_;
      int64_t lane = 0;
      const auto append = [&](const A* pointer) {
        slot[lane] = pointer;
        if (++lane == tile_rows_) {
          lane = 0;
          slot += segments * tile_rows_;
        }
      };
      for (int64_t p = r.p0; p < r.p1; ++p) {
        const int64_t h = p * pass_.step_h + tap.dh;
        const bool row_inside = taps_merged_ > 1 || (h >= 0 && h < pass_.in_h);
        int64_t w = r.q0 * pass_.step_w + tap.dw;
        for (int64_t q = r.q0; q < r.q1; ++q, w += pass_.step_w) {
          const bool inside = row_inside && (taps_merged_ > 1 || (w >= 0 && w < pass_.in_w));
          append(inside ? base + (h - h0) * pitch_h + (w - w0) * pitch_w : outside);
        }
      }
      for (int64_t i = r.pixels(); i < slots; ++i) append(outside);
    }
  }

 private:
  static constexpr int64_t kMergeChannels = 8;

  /// Merges the taps of a filter row if they are neighbours in the image.
  void merge_taps() {
    int64_t run = 1;
    while (run < pass_.num_taps && pass_.taps[run].dh == pass_.taps[0].dh) ++run;
    for (int64_t s = 1; s < run; ++s) {
      if (pass_.taps[s].dw != pass_.taps[0].dw + s) return;
    }
    taps_merged_ = run;
  }

  /// Copies input rows h0 .. h1, columns w0 .. w1 (zero outside the image) as channels-last accumulators.
  void fill_band(const T* image, int64_t channels, int64_t h0, int64_t h1, int64_t w0, int64_t w1, A* band) const {
    const Strides4& in = pass_.in_strides;
    const int64_t width = w1 - w0, first = min(w1, max(w0, 0)), last = max(first, min(w1, pass_.in_w));
    if (planar_ && w0 == 0 && width == pass_.in_w && in.h == width && h0 >= 0 && h1 <= pass_.in_h) {
      transpose(image + h0 * in.h, in.c, band, channels, channels, (h1 - h0) * width);
      return;
    }
    for (int64_t h = h0; h < h1; ++h, band += width * channels) {
      if (h < 0 || h >= pass_.in_h) {
        fill_zero(band, width * channels);
        continue;
      }
      fill_zero(band, (first - w0) * channels);
      fill_zero(band + (last - w0) * channels, (w1 - last) * channels);
      const T* from = image + h * in.h + first * in.w;
      A* to = band + (first - w0) * channels;
      if (planar_) {
        transpose(from, in.c, to, channels, channels, last - first);
      } else if (in.w == channels) {
        copy_run(from, 1, to, (last - first) * channels);
      } else {
        for (int64_t w = first; w < last; ++w, from += in.w, to += channels) copy_run(from, 1, to, channels);
      }
    }
  }

  const Pass& pass_;
  const T* in_;
  int64_t tile_rows_;
  bool planar_, band_;
  int64_t taps_merged_ = 1;
  int64_t reach_h0_, reach_h1_, reach_w0_, reach_w1_;  // least and greatest offset of a tap
};

/// Writes a tile of a channels-first output: values(pixel, channel) with `pitch` between pixels, to `channels` channels at
/// `out`, which is channel 0 of image 0.
template <class T, class A>
void store_planar(const Pass& pass, const Rectangle& r, const A* values, int64_t pitch, int64_t channels, T* out) {
  const Strides4& s = pass.out_strides;
  out += r.n * s.n + r.p0 * s.h + r.q0 * s.w;
  if (s.w != 1) {  // one residue class of an input gradient: its pixels are apart
    for (int64_t p = r.p0; p < r.p1; ++p, out += s.h, values += r.width() * pitch) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < r.width(); ++i) store_scalar<A>(out + c * s.c + i * s.w, values[i * pitch + c]);
      }
    }
  } else if (s.h == r.width()) {
    transpose(values, pitch, out, s.c, r.pixels(), channels);
  } else {
    for (int64_t p = r.p0; p < r.p1; ++p, out += s.h, values += r.width() * pitch) {
      transpose(values, pitch, out, s.c, r.width(), channels);
    }
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
