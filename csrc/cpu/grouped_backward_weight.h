// Gradients of filter and bias, both layouts:
//
//   dw(k, c, r, s) = sum over n, p, q of dy(n, k, p, q) * x(n, c, p * stride_h + r * dilation_h - pad_h, q * ... )
//   dbias(k)       = sum over n, p, q of dy(n, k, p, q)
//
// as a matrix product for each group and tap: rows = output channels, columns = input channels, depth = pixels. Pixels
// that a tap finds outside the image are left out of the depth, so padding costs nothing. Groups of fewer channels than
// a vector holds have the taps of all their channels side by side as columns instead, gathered for each pixel; those
// of 1, 2, 4 or 8 channels in and out go to grouped_narrow_backward_weight.h.
//
// A task owns some output channels of one group and one share of the images ("partial"). It walks its share in blocks
// of pixels whose x and dy stay in L2. dy is read in place; so is x if it is channels-last, otherwise each block of x
// is turned to channels-last in scratch (where 16-bit types become float32).
//
// Determinism: the number of partials and blocks follows from the shape alone, and partials are added in their order.
// Limit: the multiply-add rate; the turning adds about 5 % for channels-first.
#pragma once

#include "gemm_scratch.h"
#include "gemm_tile.h"
#include "grouped_narrow_backward_weight.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Bytes of x and dy that a block of pixels may cover.
constexpr int64_t kBlockBytes = 384 * 1024;
/// Accumulators of a task, about: they are read and written once a block.
constexpr int64_t kTaskAccumulators = 64 * 1024;
/// Tasks aimed at by splitting the images, and the pixels that a share must have.
constexpr int64_t kWantedTasks = 32, kLeastPixels = 256;

template <class T, class A>
class WeightGradient {
 public:
  static constexpr int kColumns = kTileColumns<A>;
  static constexpr int64_t kWidth = Vec<A>::kWidth;

  WeightGradient(const ConvParams& params, const T* dy, const T* x, T* dw) : p_(params), dy_(dy), x_(x), dw_(dw) {
    flatten_images();
    kg_ = p_.outputs_per_group();
    cg_ = p_.channels_per_group();
    taps_ = p_.R * p_.S;
    merged_ = cg_ < kWidth && taps_ > 1;
    columns_ = merged_ ? cg_ * taps_ : cg_;
    pitch_ = ceil_div(columns_, kWidth) * kWidth;
    column_sets_ = merged_ ? 1 : taps_;
    x_in_place_ = std::is_same_v<T, A> && p_.layout == Layout::kNHWC && !merged_ && cg_ % kWidth == 0;

    const int64_t pixels = min(1024, max(32, kBlockBytes / ((pitch_ + kg_) * int64_t(sizeof(A)))));
    block_q_ = min(p_.Q, pixels);
    block_p_ = min(p_.P, max(1, pixels / p_.Q));
    blocks_h_ = ceil_div(p_.P, block_p_);
    blocks_w_ = ceil_div(p_.Q, block_q_);
    blocks_ = p_.N * blocks_h_ * blocks_w_;

    const int64_t row = column_sets_ * pitch_;
    rows_ = min(kg_, max(1, kTaskAccumulators / row / kTileRows) * kTileRows);
    row_chunks_ = ceil_div(kg_, rows_);
    const int64_t units = p_.groups * row_chunks_;
    partials_ = max(1, min(min(blocks_, p_.N * p_.P * p_.Q / kLeastPixels), ceil_div(kWantedTasks, units)));
  }

  void run(const Parallel& parallel) {
    const int64_t units = p_.groups * row_chunks_, row = column_sets_ * pitch_;
    A* sums = scratch<A>(Slot::kPartial, partials_ * p_.K * row);
    const int64_t work = ceil_div(p_.N * p_.P * p_.Q, partials_) * rows_ * taps_ * cg_;
    parallel(0, units * partials_, grain_for(work), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t partial = task / units, unit = task % units;
        const int64_t group = unit / row_chunks_, k0 = unit % row_chunks_ * rows_;
        const int64_t rows = min(rows_, kg_ - k0);
        A* target = sums + (partial * p_.K + group * kg_ + k0) * row;
        const int64_t first = blocks_ * partial / partials_, last = blocks_ * (partial + 1) / partials_;
        for (int64_t block = first; block < last; ++block) {
          run_block(block, group, group * kg_ + k0, rows, block > first, target);
        }
      }
    });
    parallel(0, p_.K, grain_for(partials_ * row), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) finish_row(sums + k * row, p_.K * row, k);
    });
  }

 private:
  /// A 1x1 convolution over images without gaps sees one row of pixels, as in flatten() of grouped_pass.h.
  void flatten_images() {
    Strides4 &x = p_.x_strides, &y = p_.y_strides;
    if (p_.R != 1 || p_.S != 1 || p_.stride_h != 1 || p_.stride_w != 1 || p_.pad_h != 0 || p_.pad_w != 0) return;
    if (p_.H > 1) {
      if (x.h != p_.W * x.w || y.h != p_.Q * y.w) return;
      p_.W = p_.Q = p_.W * p_.H;
      p_.H = p_.P = 1;
    }
    if (p_.N > 1 && x.n == p_.W * x.w && y.n == p_.Q * y.w) {
      p_.W = p_.Q = p_.W * p_.N;
      p_.N = 1;
    }
  }

  /// x or dy of a block: pixel (row, column) at base + row * h + column * w, its channels a step of c apart.
  struct View {
    const A* base;
    int64_t c, h, w;
  };

  /// Adds (or, for the first block of a partial, writes) what one block of pixels gives to rows k0 .. k0 + rows.
  void run_block(int64_t block, int64_t group, int64_t k0, int64_t rows, bool accumulate, A* target) const {
    const int64_t n = block / (blocks_h_ * blocks_w_);
    const int64_t p0 = block / blocks_w_ % blocks_h_ * block_p_, q0 = block % blocks_w_ * block_q_;
    const int64_t p1 = min(p_.P, p0 + block_p_), q1 = min(p_.Q, q0 + block_q_);
    const View dy = view_dy(n, k0, rows, p0, p1, q0, q1);
    const View x = merged_ ? gather_x(n, group, p0, p1, q0, q1) : view_x(n, group, p0, p1, q0, q1);

    const int64_t height = p1 - p0;
    char* table = scratch<char>(Slot::kTable, height * (kTileRows + 1) * int64_t(sizeof(void*)));
    const A** a_rows = reinterpret_cast<const A**>(table);
    const A** b_rows = a_rows + height * kTileRows;
    A* c_rows[kTileRows];
    for (int64_t set = 0; set < column_sets_; ++set) {
      // The outputs of the block whose input lies inside the image, for this tap.
      int64_t p_begin = p0, p_end = p1, q_begin = q0, q_end = q1, dh = 0, dw = 0;
      if (!merged_) {
        dh = set / p_.S * p_.dilation_h - p_.pad_h;
        dw = set % p_.S * p_.dilation_w - p_.pad_w;
        clip(dh, p_.stride_h, p_.H, p_begin, p_end);
        clip(dw, p_.stride_w, p_.W, q_begin, q_end);
      }
      const int64_t segments = q_begin < q_end ? max(0, p_end - p_begin) : 0;
      GemmTile<A> tile{a_rows,
                       b_rows,
                       0,
                       dy.w,
                       merged_ ? x.w : x.w * p_.stride_w,
                       segments,
                       q_end - q_begin,
                       c_rows,
                       0,
                       accumulate ? c_rows : nullptr,
                       false,
                       nullptr,
                       nullptr,
                       Activation::kNone};
      for (int64_t k = 0; k < rows; k += kTileRows) {
        const int tile_rows = static_cast<int>(min(kTileRows, rows - k));
        for (int64_t s = 0; s < segments; ++s) {
          const A* a = dy.base + k * dy.c + (p_begin + s - p0) * dy.h + (q_begin - q0) * dy.w;
          for (int i = 0; i < tile_rows; ++i) a_rows[s * kTileRows + i] = a + i * dy.c;
        }
        for (int64_t j = 0; j < columns_; j += kColumns) {
          for (int64_t s = 0; s < segments; ++s) {
            const int64_t h = merged_ ? p_begin + s - p0 : (p_begin + s) * p_.stride_h + dh;
            const int64_t w = merged_ ? q_begin - q0 : q_begin * p_.stride_w + dw;
            b_rows[s] = x.base + h * x.h + w * x.w + j;
          }
          for (int i = 0; i < tile_rows; ++i) c_rows[i] = target + ((k + i) * column_sets_ + set) * pitch_ + j;
          // Whole vectors: the lanes beyond columns_ land in the pitch.
          tile.columns = static_cast<int>(min(kColumns, pitch_ - j));
          gemm_tile(tile_rows, tile);
        }
      }
    }
  }

  /// Narrows [begin, end) to the outputs o with 0 <= o * stride + offset < size.
  static void clip(int64_t offset, int64_t stride, int64_t size, int64_t& begin, int64_t& end) {
    if (offset < 0) begin = max(begin, ceil_div(-offset, stride));
    end = min(end, offset >= size ? 0 : ceil_div(size - offset, stride));
  }

  View view_dy(int64_t n, int64_t k0, int64_t rows, int64_t p0, int64_t p1, int64_t q0, int64_t q1) const {
    const Strides4& y = p_.y_strides;
    const T* from = dy_ + n * y.n + k0 * y.c + p0 * y.h + q0 * y.w;
    if constexpr (std::is_same_v<T, A>) {
      return {from, y.c, y.h, y.w};
    } else {
      const int64_t height = p1 - p0, width = q1 - q0;
      A* band = scratch<A>(Slot::kBand2, rows * height * width);
      if (p_.layout == Layout::kNCHW) {
        for (int64_t k = 0; k < rows; ++k) {
          for (int64_t h = 0; h < height; ++h) {
            copy_run(from + k * y.c + h * y.h, 1, band + (k * height + h) * width, width);
          }
        }
        return {band, height * width, width, 1};
      }
      for (int64_t h = 0; h < height; ++h) {
        for (int64_t w = 0; w < width; ++w) {
          copy_run(from + h * y.h + w * y.w, 1, band + (h * width + w) * rows, rows);
        }
      }
      return {band, 1, width * rows, rows};
    }
  }

  /// The group's channels of x as pixels of `pitch_` channels; the view's (0, 0) is pixel (0, 0) of the image.
  View view_x(int64_t n, int64_t group, int64_t p0, int64_t p1, int64_t q0, int64_t q1) const {
    const Strides4& x = p_.x_strides;
    const T* from = x_ + n * x.n + group * cg_ * x.c;
    if constexpr (std::is_same_v<T, A>) {
      if (x_in_place_) return {from, 1, x.h, x.w};
    }
    // What the block's taps reach.
    const int64_t h0 = min(p_.H, max(0, p0 * p_.stride_h - p_.pad_h));
    const int64_t w0 = min(p_.W, max(0, q0 * p_.stride_w - p_.pad_w));
    const int64_t h1 = max(h0, min(p_.H, (p1 - 1) * p_.stride_h - p_.pad_h + (p_.R - 1) * p_.dilation_h + 1));
    const int64_t w1 = max(w0, min(p_.W, (q1 - 1) * p_.stride_w - p_.pad_w + (p_.S - 1) * p_.dilation_w + 1));
    const int64_t height = h1 - h0, width = w1 - w0;
    A* band = scratch<A>(Slot::kBand, height * width * pitch_);
    if (columns_ < pitch_) fill_zero(band, height * width * pitch_);
    if (p_.layout == Layout::kNCHW) {
      if (width == p_.W && x.h == p_.W) {
        transpose(from + h0 * x.h, x.c, band, pitch_, cg_, height * width);
      } else {
        for (int64_t h = 0; h < height; ++h) {
          transpose(from + (h0 + h) * x.h + w0, x.c, band + h * width * pitch_, pitch_, cg_, width);
        }
      }
    } else {
      for (int64_t h = 0; h < height; ++h) {
        for (int64_t w = 0; w < width; ++w) {
          copy_run(from + (h0 + h) * x.h + (w0 + w) * x.w, 1, band + (h * width + w) * pitch_, cg_);
        }
      }
    }
    return {band - (h0 * width + w0) * pitch_, 1, width * pitch_, pitch_};
  }

  /// For each output pixel of the block, the inputs of all taps, ordered (tap, channel), zero outside the image.
  View gather_x(int64_t n, int64_t group, int64_t p0, int64_t p1, int64_t q0, int64_t q1) const {
    const Strides4& x = p_.x_strides;
    const int64_t height = p1 - p0, width = q1 - q0;
    A* band = scratch<A>(Slot::kBand, height * width * pitch_);
    fill_zero(band, height * width * pitch_);
    for (int64_t t = 0; t < taps_; ++t) {
      const int64_t dh = t / p_.S * p_.dilation_h - p_.pad_h, dw = t % p_.S * p_.dilation_w - p_.pad_w;
      int64_t p_begin = p0, p_end = p1, q_begin = q0, q_end = q1;
      clip(dh, p_.stride_h, p_.H, p_begin, p_end);
      clip(dw, p_.stride_w, p_.W, q_begin, q_end);
      for (int64_t p = p_begin; p < p_end; ++p) {
        if (q_begin >= q_end) break;
        const int64_t h = p * p_.stride_h + dh, w = q_begin * p_.stride_w + dw;
        const T* from = x_ + n * x.n + group * cg_ * x.c + h * x.h + w * x.w;
        A* to = band + ((p - p0) * width + q_begin - q0) * pitch_ + t * cg_;
        for (int64_t q = q_begin; q < q_end; ++q, from += p_.stride_w * x.w, to += pitch_) {
          for (int64_t c = 0; c < cg_; ++c) to[c] = load_scalar<A>(from + c * x.c);
        }
      }
    }
    return {band, 1, width * pitch_, pitch_};
  }

  /// Adds the partials of filter k in their order, and writes them in the filter's order (c, tap).
  void finish_row(A* sums, int64_t partial_stride, int64_t k) const {
    const int64_t row = column_sets_ * pitch_;
    for (int64_t i = 0; i < row; i += kWidth) {
      Vec<A> total = Vec<A>::load(sums + i);
      for (int64_t partial = 1; partial < partials_; ++partial) {
        total = total + Vec<A>::load(sums + partial * partial_stride + i);
      }
      total.store(sums + i);
    }
    T* to = dw_ + k * cg_ * taps_;
    if (taps_ == 1) {
      copy_run(sums, 1, to, cg_);
    } else {
      transpose(sums, merged_ ? cg_ : pitch_, to, taps_, taps_, cg_);
    }
  }

  ConvParams p_;
  const T* dy_;
  const T* x_;
  T* dw_;
  int64_t kg_, cg_, taps_;
  bool merged_;                            // the columns are (tap, channel) of one pixel
  int64_t columns_, pitch_, column_sets_;  // columns of a set, rounded up; sets: one a tap unless merged
  bool x_in_place_;
  int64_t block_p_, block_q_, blocks_h_, blocks_w_, blocks_;
  int64_t rows_, row_chunks_;  // output channels of a task
  int64_t partials_;
};

/// dbias(k) = sum of dy(., k, ., .): row sums first, then their total, so that rounding grows with the rows alone.
template <class T, class A>
void bias_gradient(const ConvParams& p, const Parallel& parallel, const T* dy, T* dbias) {
  using V = Vec<A>;
  constexpr int64_t kWidth = V::kWidth;
  const Strides4& y = p.y_strides;
  if (p.layout == Layout::kNCHW) {
    parallel(0, p.K, grain_for(p.N * p.P * p.Q), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        V total = V::zero();
        for (int64_t n = 0; n < p.N; ++n) {
          for (int64_t h = 0; h < p.P; ++h) {
            const T* row = dy + n * y.n + k * y.c + h * y.h;
            V sum = V::zero();
            int64_t q = 0;
            for (; q + kWidth <= p.Q; q += kWidth) sum += V::load(row + q);
            if (q < p.Q) sum += V::load(row + q, static_cast<int>(p.Q - q));
            total += sum;
          }
        }
        store_scalar<A>(dbias + k, sum(total));
      }
    });
    return;
  }
  const int64_t rows = p.N * p.P, shares = min(rows, kWantedTasks), pitch = ceil_div(p.K, kWidth) * kWidth;
  A* sums = scratch<A>(Slot::kPartial, shares * pitch);
  parallel(0, shares, grain_for(ceil_div(rows, shares) * p.Q * p.K), [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      A* total = sums + share * pitch;
      fill_zero(total, pitch);
      for (int64_t row = rows * share / shares; row < rows * (share + 1) / shares; ++row) {
        const T* from = dy + row / p.P * y.n + row % p.P * y.h;
        for (int64_t k = 0; k < p.K; k += kWidth) {
          const int lanes = static_cast<int>(min(kWidth, p.K - k));
          V sum = V::zero();
          if (lanes == kWidth) {
            for (int64_t q = 0; q < p.Q; ++q) sum += V::load(from + q * y.w + k);
          } else {
            for (int64_t q = 0; q < p.Q; ++q) sum += V::load(from + q * y.w + k, lanes);
          }
          (V::load(total + k) + sum).store(total + k);
        }
      }
    }
  });
  for (int64_t k = 0; k < p.K; ++k) {
    A total = sums[k];
    for (int64_t share = 1; share < shares; ++share) total += sums[share * pitch + k];
    store_scalar<A>(dbias + k, total);
  }
}

template <class T, class A>
void run_backward_weight(const ConvParams& p, const Parallel& parallel, const T* dy, const T* x, T* dw, T* dbias) {
  if (dw != nullptr) {
    const Pass pass = forward_pass(p);
    if (NarrowPass<T, A>::takes(pass)) {
      NarrowWeightGradient<T, A>(pass, p.layout, dy, x, dw).run(parallel);
    } else {
      WeightGradient<T, A>(p, dy, x, dw).run(parallel);
    }
  }
  if (dbias != nullptr) bias_gradient<T, A>(p, parallel, dy, dbias);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
