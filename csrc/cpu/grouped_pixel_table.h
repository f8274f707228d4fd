// Where the pixels of a task read their input.
//
// A task owns a rectangle of output pixels of one image. Channels-last input of the accumulator type is read in place;
// other input (channels-first, 16-bit, or a group's few channels out of many, which would use few sets of the cache) is
// first copied, all that the rectangle reaches and zeros around the image, to a "band" of channels-last accumulators.
//
// In a band the S taps x C channels of a filter row are one contiguous run of S * C, worth walking as one segment.
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

/// The input that a rectangle reaches, as accumulators: pixel (h, w) of channel block b, counted from the first that
/// the rectangle reaches, is at base + b * block_pitch + h * pitch_h + w * pitch_w.
template <class A>
struct Band {
  const A* base;
  int64_t block_pitch, pitch_h, pitch_w;
};

template <class T, class A>
class BandSource {
 public:
  BandSource(const Pass& pass, Layout layout, const T* in) : pass_(pass), in_(in), planar_(layout == Layout::kNCHW) {
    if (pass.num_taps == 0) return;
    h0_ = w0_ = INT64_MAX;
    h1_ = w1_ = INT64_MIN;
    for (int64_t t = 0; t < pass.num_taps; ++t) {
      h0_ = min(h0_, pass.taps[t].dh);
      h1_ = max(h1_, pass.taps[t].dh);
      w0_ = min(w0_, pass.taps[t].dw);
      w1_ = max(w1_, pass.taps[t].dw);
    }
  }

  /// Rows and columns by which tap t is beyond the first that a rectangle reaches.
  int64_t tap_h(int64_t t) const { return pass_.taps[t].dh - h0_; }
  int64_t tap_w(int64_t t) const { return pass_.taps[t].dw - w0_; }

  /// Copies input channels c0 .. c0 + channels in blocks of `block` channels to this thread's scratch at `slot`. In a
  /// last block of fewer channels the others are left as they are.
  Band<A> fill(const Rectangle& r, int64_t c0, int64_t channels, int64_t block, Slot slot) const {
    const int64_t h = r.p0 * pass_.step_h + h0_, height = (r.p1 - 1 - r.p0) * pass_.step_h + h1_ - h0_ + 1;
    const int64_t w = r.q0 * pass_.step_w + w0_, width = (r.q1 - 1 - r.q0) * pass_.step_w + w1_ - w0_ + 1;
    A* base = scratch<A>(slot, ceil_div(channels, block) * height * width * block);
    const Band<A> band{base, height * width * block, width * block, block};
    const T* image = in_ + r.n * pass_.in_strides.n + c0 * pass_.in_strides.c;
    // Columns inside the image.
    const int64_t first = min(w + width, max(w, 0)), last = max(first, min(w + width, pass_.in_w));
    for (int64_t i = 0; i < height; ++i, base += band.pitch_h) {
      const bool inside = h + i >= 0 && h + i < pass_.in_h;
      for (int64_t c = 0; c < channels; c += block) {
        A* row = base + c / block * band.block_pitch;
        if (!inside) {
          fill_zero(row, width * block);
          continue;
        }
        fill_zero(row, (first - w) * block);
        fill_zero(row + (last - w) * block, (w + width - last) * block);
      }
      if (!inside || first == last) continue;
      copy_row(image + (h + i) * pass_.in_strides.h + first * pass_.in_strides.w, channels, last - first, block,
               base + (first - w) * block, band.block_pitch);
    }
    return band;
  }

 private:
  void copy_row(const T* from, int64_t channels, int64_t pixels, int64_t block, A* to, int64_t block_pitch) const {
    const Strides4& in = pass_.in_strides;
    if (planar_) {
      for (int64_t c = 0; c < channels; c += block) {
        transpose(from + c * in.c, in.c, to + c / block * block_pitch, block, min(block, channels - c), pixels);
      }
    } else if (in.w == block && channels == block) {
      copy_run(from, 1, to, pixels * block);
    } else {
      for (int64_t i = 0; i < pixels; ++i, from += in.w, to += block) {
        for (int64_t c = 0; c < channels; c += block) {
          copy_run(from + c, 1, to + c / block * block_pitch, min(block, channels - c));
        }
      }
    }
  }

  const Pass& pass_;
  const T* in_;
  bool planar_;
  int64_t h0_ = 0, h1_ = 0, w0_ = 0, w1_ = 0;  // least and greatest offset of a tap
};

/// Pointers to the input of every pixel and segment: (pixel / kTileRows, segment, pixel % kTileRows). A segment is one
/// tap, or with a band all taps of a filter row.
template <class T, class A>
class PixelTable {
 public:
  PixelTable(const Pass& pass, Layout layout, const T* in, int64_t tile_rows)
      : pass_(pass), source_(pass, layout, in), in_(in), tile_rows_(tile_rows) {
    const bool few_channels = pass.num_taps > 1 && (pass.groups > 1 || pass.in_channels < kFewChannels);
    band_ = layout == Layout::kNCHW || few_channels || !std::is_same_v<T, A>;
    if (band_) merge_taps();
  }

  int64_t segments() const { return pass_.num_taps / taps_merged_; }
  int64_t taps_merged() const { return taps_merged_; }
  /// Pointers of a rectangle.
  int64_t size(const Rectangle& r) const { return ceil_div(r.pixels(), tile_rows_) * tile_rows_ * segments(); }

  /// What a table of pointers into a band depends on.
  struct Filled {
    const A* base = nullptr;
    const A** table = nullptr;
    int64_t height = 0, width = 0;
  };

  /// Fills the table for input channels c0 .. c0 + channels. Valid until this thread's next call. `filled` is what the
  /// last call filled in: tables of equal rectangles over a band at the same place are equal, whatever the group.
  void locate(const Rectangle& r, int64_t c0, int64_t channels, const A** table, Filled& filled) const {
    if (pass_.num_taps == 0) return;
    const Strides4& in = pass_.in_strides;
    const A* outside = zeros<A>(channels);
    Band<A> band{};
    if (band_) {
      band = source_.fill(r, c0, channels, channels, Slot::kBand);
      const Filled wanted{band.base, table, r.p1 - r.p0, r.width()};
      if (wanted.base == filled.base && wanted.table == filled.table && wanted.height == filled.height &&
          wanted.width == filled.width) {
        return;
      }
      filled = wanted;
    } else if constexpr (std::is_same_v<T, A>) {
      band = {in_ + r.n * in.n + c0 * in.c, 0, in.h, in.w};
    }
    const int64_t segments = this->segments();
    for (int64_t s = 0; s < segments; ++s) {
      const int64_t t = s * taps_merged_;
      // Input row and column of output (p, q), as `band` counts them.
      const int64_t dh = band_ ? source_.tap_h(t) - r.p0 * pass_.step_h : pass_.taps[t].dh;
      const int64_t dw = band_ ? source_.tap_w(t) - r.q0 * pass_.step_w : pass_.taps[t].dw;
      const A** slot = table + s * tile_rows_;
      int64_t lane = 0;
      for (int64_t p = r.p0; p < r.p1; ++p) {
        const int64_t h = p * pass_.step_h + dh;
        const bool row_inside = band_ || (h >= 0 && h < pass_.in_h);
        for (int64_t q = r.q0; q < r.q1; ++q) {
          const int64_t w = q * pass_.step_w + dw;
          const bool inside = band_ || (row_inside && w >= 0 && w < pass_.in_w);
          slot[lane] = inside ? band.base + h * band.pitch_h + w * band.pitch_w : outside;
          if (++lane == tile_rows_) {
            lane = 0;
            slot += segments * tile_rows_;
          }
        }
      }
    }
  }

 private:
  static constexpr int64_t kFewChannels = 8;

  /// Merges the taps of each filter row if they are neighbours in the image.
  void merge_taps() {
    const Tap* taps = pass_.taps;
    int64_t run = 1;
    while (run < pass_.num_taps && taps[run].dh == taps[0].dh) ++run;
    for (int64_t s = 1; s < min(run, pass_.num_taps); ++s) {
      if (taps[s].dw != taps[0].dw + s) return;
    }
    taps_merged_ = run;
  }

  const Pass& pass_;
  const BandSource<T, A> source_;
  const T* in_;
  int64_t tile_rows_;
  bool band_;
  int64_t taps_merged_ = 1;
};

/// Writes a tile of a channels-first output: values(pixel, channel) with `pitch` between pixels, to `channels` channels
/// at `out`, which is channel 0 of image 0.
template <class T, class A>
void store_planar(const Pass& pass, const Rectangle& r, const A* values, int64_t pitch, int64_t channels, T* out) {
  const Strides4& s = pass.out_strides;
  out += r.n * s.n + r.p0 * s.h + r.q0 * s.w;
  if (s.w != 1) {  // one residue class of an input gradient: its pixels are apart
    A* turned = scratch<A>(Slot::kTurned, channels * r.width());
    for (int64_t p = r.p0; p < r.p1; ++p, out += s.h, values += r.width() * pitch) {
      transpose(values, pitch, turned, r.width(), r.width(), channels);
      for (int64_t c = 0; c < channels; ++c) scatter_run(turned + c * r.width(), out + c * s.c, s.w, r.width());
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
