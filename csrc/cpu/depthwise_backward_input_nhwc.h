// Gradient of depthwise convolution with respect to its input, NHWC:
//
//   dx[n, h, w, c] = sum over j, r, s with (h + pad_h - r * dilation_h) = p * stride_h and
//                                          (w + pad_w - s * dilation_w) = q * stride_w
//                    of dy[n, p, q, c * m + j] * w[c * m + j, r, s]
//
// dx: N x H x W x C, dy: N x P x Q x K, m = K / C. An index of the parallel loop owns one row dx[n, h];
// neighbouring rows of a chunk are computed together.
// All columns w of a class modulo stride_w have the same taps s, at consecutive q: each class is a correlation of step
// 1 (depthwise_correlate_nhwc.h), and nothing is tested for divisibility inside it.
#pragma once

#include "depthwise_correlate_nhwc.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Rows of dy with the channels of each pixel regrouped from c * m + j to j * C + c. Neighbouring rows of dx share rows
/// of dy, so the last `depth` regrouped rows are kept.
template <class T>
class RegroupedRows {
 public:
  RegroupedRows(const ConvParams& p, const T* dy, int64_t depth)
      : p_(p), dy_(dy), depth_(depth), rows_(depth * p.Q * p.K), kept_(depth) {
    for (int64_t i = 0; i < depth; ++i) kept_[i] = -1;
  }

  const T* get(int64_t n, int64_t out_h) {
    T* row = rows_.data() + out_h % depth_ * p_.Q * p_.K;
    int64_t& kept = kept_[out_h % depth_];
    if (kept != n * p_.P + out_h) {
      kept = n * p_.P + out_h;
      const T* from = dy_ + n * p_.y_strides.n + out_h * p_.y_strides.h;
      regroup_channels(p_, from, p_.y_strides.w, row);
    }
    return row;
  }

 private:
  const ConvParams& p_;
  const T* dy_;
  int64_t depth_;
  Scratch<T, 2048> rows_;
  Scratch<int64_t, 16> kept_;
};

/// The taps of each class of columns of dx.
class ColumnClasses {
 public:
  explicit ColumnClasses(const ConvParams& p) : taps_(p.S), begin_(p.stride_w + 1) {
    int64_t count = 0;
    for (int64_t residue = 0; residue < p.stride_w; ++residue) {
      begin_[residue] = count;
      for (int64_t s = p.S - 1; s >= 0; --s) {  // columns ascending
        const int64_t offset = residue + p.pad_w - s * p.dilation_w;
        if (offset % p.stride_w == 0) taps_[count++] = {offset / p.stride_w, s};
      }
    }
    begin_[p.stride_w] = count;
  }

  const ColumnTap* taps(int64_t residue) { return taps_.data() + begin_[residue]; }
  int64_t num_taps(int64_t residue) { return begin_[residue + 1] - begin_[residue]; }

 private:
  Scratch<ColumnTap, 32> taps_;
  Scratch<int64_t, 16> begin_;
};

template <class T, class A>
void depthwise_backward_input_nhwc(const ConvParams& p, const Parallel& parallel, const T* dy, const T* w, T* dx) {
  const int64_t multiplier = p.K / p.C;
  const PackedFilter<A> filter(p, w);
  ColumnClasses classes(p);
  const bool prefetched = multiplier == 1 && is_prefetch_worthwhile<T>(p);

  const int64_t work = ceil_div(p.W, p.stride_w) * ceil_div(p.R, p.stride_h) * p.S * p.K;
  parallel(0, p.N * p.H, depthwise_grain(work), [&](int64_t begin, int64_t end) {
    SourceRows<T, A> rows(kOutRows * p.R * multiplier);
    // Rows of dy under kOutRows rows of dx.
    const int64_t depth = ((p.R - 1) * p.dilation_h + kOutRows - 1) / p.stride_h + 1;
    RegroupedRows<T> regrouped(p, dy, multiplier > 1 ? depth : 0);
    int64_t step = 1;
    for (int64_t index = begin; index < end; index += step) {
      const int64_t n = index / p.H, h = index % p.H;
      // Neighbouring rows share rows of dy if the filter is not dilated.
      step = p.dilation_h == 1 ? min(kOutRows, min(end - index, p.H - h)) : 1;
      rows.clear();
      for (int o = 0; o < step; ++o) {
        for (int64_t r = p.R - 1; r >= 0; --r) {  // rows of dy ascending
          const int64_t offset = h + o + p.pad_h - r * p.dilation_h;
          if (offset < 0 || offset % p.stride_h != 0 || offset / p.stride_h >= p.P) continue;
          const int64_t out_h = offset / p.stride_h;
          const T* pixels = multiplier > 1 ? regrouped.get(n, out_h) : dy + n * p.y_strides.n + out_h * p.y_strides.h;
          for (int64_t j = 0; j < multiplier; ++j) {
            rows.add(o, pixels + j * p.C, filter.row(j, r));
          }
        }
      }
      for (int64_t residue = 0; residue < min(p.stride_w, p.W); ++residue) {
        CorrelateRows<T, A> call{rows.data(),
                                 rows.size(),
                                 classes.taps(residue),
                                 classes.num_taps(residue),
                                 filter.taps(),
                                 p.Q,
                                 multiplier > 1 ? p.K : p.y_strides.w,
                                 1,
                                 {},
                                 step,
                                 p.stride_w * p.x_strides.w,
                                 ceil_div(p.W - residue, p.stride_w),
                                 p.C,
                                 nullptr,
                                 Epilogue<A>(Activation::kNone),
                                 {},
                                 {}};
        for (int o = 0; o < step; ++o) {
          call.out[o] = dx + n * p.x_strides.n + (h + o) * p.x_strides.h + residue * p.x_strides.w;
        }
        if (prefetched && h + step < p.H) {
          call.out_to_come = {call.out[0] + step * p.x_strides.h, min(step, p.H - h - step), p.x_strides.h};
        }
        if (prefetched && residue == 0) {
          // The rows of dy below those in use.
          const int64_t first = (h + step - 1 + p.pad_h) / p.stride_h + 1;
          const int64_t last = min((h + 2 * step - 1 + p.pad_h) / p.stride_h, p.P - 1);
          call.source_to_come = {dy + n * p.y_strides.n + first * p.y_strides.h, last - first + 1, p.y_strides.h};
        }
        correlate_rows(call);
      }
    }
  });
}

}  // namespace cnnext::cpu::CNNEXT_ISA
