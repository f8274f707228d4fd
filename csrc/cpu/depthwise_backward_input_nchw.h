// Gradient of depthwise convolution with respect to its input, NCHW:
//
//   dx[n, c, h, w] = sum over j, r, s with (h + pad_h - r * dilation_h) = p * stride_h and
//                                          (w + pad_w - s * dilation_w) = q * stride_w
//                    of dy[n, c * m + j, p, q] * w[c * m + j, r, s]
//
// dx: N x C x H x W, dy: N x K x P x Q, m = K / C.
//
// The pixels of dx whose row is a modulo stride_h and whose column is b modulo stride_w form a class with taps of its own,
// at fixed distances in dy: a correlation of step 1 (depthwise_correlate_nchw.h). An index of the parallel loop owns a
// band of one plane dx[n, c], stride_h * (rows of a class) high; the rows of dy under it are packed once for all classes.
// With stride_w > 1 the classes of a row are computed side by side, then interleaved.
#pragma once

#include "depthwise_correlate_nchw.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// The taps of one dimension, sorted by class: tap i of a class reads dy at (index in the class) + positions[i].
class TapClasses {
 public:
  TapClasses(int64_t size, int64_t stride, int64_t pad, int64_t dilation)
      : taps_(size), positions_(size), begin_(stride + 1), first_(0), last_(0) {
    int64_t count = 0;
    for (int64_t residue = 0; residue < stride; ++residue) {
      begin_[residue] = count;
      for (int64_t tap = size - 1; tap >= 0; --tap) {  // positions ascending
        const int64_t distance = residue + pad - tap * dilation;
        if (distance % stride != 0) continue;
        taps_[count] = tap;
        positions_[count++] = distance / stride;
        first_ = count == 1 ? distance / stride : min(first_, distance / stride);
        last_ = count == 1 ? distance / stride : max(last_, distance / stride);
      }
    }
    begin_[stride] = count;
  }

  int64_t count(int64_t residue) { return begin_[residue + 1] - begin_[residue]; }
  const int64_t* taps(int64_t residue) { return taps_.data() + begin_[residue]; }
  const int64_t* positions(int64_t residue) { return positions_.data() + begin_[residue]; }
  /// The least and the greatest position of any class.
  int64_t first() const { return first_; }
  int64_t last() const { return last_; }

 private:
  Scratch<int64_t, 16> taps_, positions_, begin_;
  int64_t first_, last_;
};

/// to[j * stride + residue] = from[residue * length + j]
template <class T, class A>
void interleave_row(const A* from, int64_t length, int64_t stride, T* to, int64_t width) {
  constexpr int kWidth = Vec<A>::kWidth;
  int64_t w = 0;
  if (stride == 2) {
    for (; w + 2 * kWidth <= width; w += 2 * kWidth) {
      Vec<A> even = Vec<A>::load(from + w / 2), odd = Vec<A>::load(from + length + w / 2);
      zip(even, odd);
      even.store(to + w);
      odd.store(to + w + kWidth);
    }
    if (w < width) {
      Vec<A> even = Vec<A>::load(from + w / 2), odd = Vec<A>::load(from + length + w / 2);
      zip(even, odd);
      even.store(to + w, static_cast<int>(min(kWidth, width - w)));
      odd.store(to + w + kWidth, static_cast<int>(max(0, width - w - kWidth)));
    }
    return;
  }
  for (int64_t residue = 0; residue < stride; ++residue) {
    for (int64_t j = 0; j * stride + residue < width; ++j) {
      store_scalar(to + j * stride + residue, from[residue * length + j]);
    }
  }
}

template <class T, class A>
void depthwise_backward_input_nchw(const ConvParams& p, const Parallel& parallel, const T* dy, const T* w, T* dx) {
  const int64_t multiplier = p.K / p.C, taps = p.R * p.S;
  TapClasses row_taps(p.R, p.stride_h, p.pad_h, p.dilation_h), column_taps(p.S, p.stride_w, p.pad_w, p.dilation_w);
  const int64_t class_height = ceil_div(p.H, p.stride_h), class_width = ceil_div(p.W, p.stride_w);

  // The rows of the m planes of dy lie one plane after the other in the scratch.
  const PackedRows packing(1, column_taps.first(), class_width + column_taps.last() - column_taps.first());
  const int64_t span = row_taps.last() - row_taps.first() + 1;
  const int64_t rows_per_band = band_rows(packing.pitch * multiplier, span, 1, class_height);
  const int64_t bands = ceil_div(class_height, rows_per_band);
  const int64_t plane_size = packing.pitch * (rows_per_band - 1 + span);

  const bool interleave = p.stride_w > 1;
  const int64_t line_length = class_width + Vec<A>::kWidth;  // interleaving reads whole vectors

  const int64_t work = multiplier * rows_per_band * p.W * p.S * ceil_div(p.R, 1);
  parallel(0, p.N * p.C * bands, grain_for(work), [&](int64_t begin, int64_t end) {
    Scratch<A, kBandScratch> packed(packing.size(multiplier * (rows_per_band - 1 + span)));
    Scratch<A, kBandScratch / 2> lines(interleave ? rows_per_band * p.stride_w * line_length : 0);
    Scratch<A, 64> weights(multiplier * taps);
    Scratch<int64_t, 64> offsets(multiplier * taps);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / bands / p.C, c = index / bands % p.C, first_row = index % bands * rows_per_band;
      const int64_t rows = min(rows_per_band, class_height - first_row);
      for (int64_t j = 0; j < multiplier; ++j) {
        packing.fill(packed.data() + j * plane_size, dy + n * p.y_strides.n + (c * multiplier + j) * p.y_strides.c,
                     p.y_strides.h, p.P, p.Q, first_row + row_taps.first(), rows - 1 + span);
      }
      for (int64_t a = 0; a < min(p.stride_h, p.H); ++a) {
        const int64_t num_r = row_taps.count(a);
        const int64_t height = min(rows, ceil_div(p.H - a, p.stride_h) - first_row);  // of this class, in this band
        if (height <= 0) continue;
        bool whole_columns = has_column_kernel(num_r, 1);
        for (int64_t i = 1; i < num_r; ++i) {
          whole_columns &= row_taps.positions(a)[i] == row_taps.positions(a)[0] + i;
        }
        T* out = dx + n * p.x_strides.n + c * p.x_strides.c + (first_row * p.stride_h + a) * p.x_strides.h;
        for (int64_t b = 0; b < min(p.stride_w, p.W); ++b) {
          int64_t columns = 0, weight = 0;
          for (int64_t j = 0; j < multiplier; ++j) {
            for (int64_t l = 0; l < column_taps.count(b); ++l) {
              for (int64_t i = 0; i < num_r; ++i) {
                if (i == 0 || !whole_columns) {
                  offsets[columns++] = j * plane_size + (row_taps.positions(a)[i] - row_taps.first()) * packing.pitch +
                                       column_taps.positions(b)[l] - column_taps.first();
                }
                weights[weight++] = load_scalar<A>(w + (c * multiplier + j) * taps + row_taps.taps(a)[i] * p.S +
                                                   column_taps.taps(b)[l]);
              }
            }
          }
          const FilterColumns<A> filter{offsets.data(), weights.data(), columns, whole_columns ? num_r : 1, 1};
          const Epilogue<A> no_epilogue(Activation::kNone);
          const int64_t width = ceil_div(p.W - b, p.stride_w);
          if (interleave) {
            correlate_plane(filter, packed.data(), packing.pitch, A(0), no_epilogue, lines.data() + b * line_length,
                            p.stride_w * line_length, height, width);
          } else {
            correlate_plane(filter, packed.data(), packing.pitch, A(0), no_epilogue, out, p.stride_h * p.x_strides.h,
                            height, width);
          }
        }
        for (int64_t i = 0; interleave && i < height; ++i) {
          interleave_row(lines.data() + i * p.stride_w * line_length, line_length, p.stride_w,
                         out + i * p.stride_h * p.x_strides.h, p.W);
        }
      }
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
