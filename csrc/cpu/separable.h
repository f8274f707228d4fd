// The depthwise-separable block, NHWC, without a depthwise multiplier:
//
//   m[n, p, q, c] = activation(bias[c] + sum over r, s of x[n, h, w, c] * f[c, r, s]),
//                   h = p * stride_h + r * dilation_h - pad_h, w = q * stride_w + s * dilation_w - pad_w
//   y[n, p, q, k] = activation(bias[k] + residual[n, p, q, k] + sum over c of m[n, p, q, c] * g[k, c])
//
// x: N x H x W x C, y: N x P x Q x K. m is never a tensor: a task owns a rectangle of pixels of an image and some of
// the output channels. It computes m for the rectangle into scratch, at most kTileBytes so that it stays in the
// second-level cache, and multiplies it, panel by panel of the 1x1 filter, in register tiles (gemm_tile.h). Where there
// are fewer rectangles than threads, the output channels of one are shared out, and each of its tasks computes m again.
//
// m is rounded to the type of x, as it would be in memory.
//
// Limit: the multiply-adds of the 1x1 convolution; the depthwise half adds R * S / K of them and its loads.
#pragma once

#include "depthwise_correlate_nhwc.h"
#include "gemm_tile.h"
#include "grouped_pixel_table.h"
#include "packed_filter.h"

namespace cnnext::cpu::CNNEXT_ISA {

// Compiled with depthwise.h and grouped.h.
extern template void correlate_rows(const CorrelateRows<float, float>&);
extern template void correlate_rows(const CorrelateRows<double, double>&);
extern template void correlate_rows(const CorrelateRows<Half, float>&);
extern template void correlate_rows(const CorrelateRows<BFloat16, float>&);
extern template void gemm_tile(int, const GemmTile<float>&);
extern template void gemm_tile(int, const GemmTile<double>&);

/// How the block is cut into tasks: rectangles of `rows` x `columns` pixels, each `shares` times, with a part of the
/// panels of output channels.
struct SeparablePlan {
  int64_t rows, columns, shares;
};

/// Bytes of the middle of a rectangle.
constexpr int64_t kTileBytes = 256 * 1024;
/// More pixels would only make tasks uneven: the filter is used often enough.
constexpr int64_t kMostTilePixels = 512;

/// The plan with the least time of the busiest thread, in multiply-adds; of equal ones, that of the largest rectangles.
inline SeparablePlan plan_separable(const ConvParams& depthwise, int64_t K, int64_t panels, int64_t accumulator_bytes,
                                    int64_t threads) {
  const int64_t N = depthwise.N, C = depthwise.C, P = depthwise.P, Q = depthwise.Q;
  // What a multiply-add of the depthwise half costs, and the pixels whose product takes as long as fetching a filter.
  constexpr int64_t kDepthwiseCost = 3, kFilterPixels = 4;
  const int64_t most = max(kTileRows, min(kMostTilePixels, kTileBytes / (C * accumulator_bytes)));
  const int64_t columns = Q <= most ? Q : ceil_div(Q, ceil_div(Q, most));
  SeparablePlan best{1, columns, 1};
  int64_t best_cost = INT64_MAX;
  for (int64_t rows = min(P, max(1, most / columns)); rows >= 1; --rows) {
    const int64_t rectangles = N * ceil_div(P, rows) * ceil_div(Q, columns), pixels = rows * columns;
    const int64_t most_shares = min(panels, ceil_div(threads, rectangles));
    for (const int64_t shares : {int64_t{1}, most_shares}) {
      const int64_t share_outputs = ceil_div(panels, shares) * K / panels;
      const int64_t middle = kDepthwiseCost * pixels * C * depthwise.R * depthwise.S;
      const int64_t product = (pixels + kFilterPixels) * C * share_outputs;
      const int64_t cost = ceil_div(rectangles * shares, threads) * (middle + product);
      if (cost < best_cost) {
        best = {rows, columns, shares};
        best_cost = cost;
      }
    }
  }
  return best;
}

template <class T, class A>
class SeparablePass {
 public:
  static constexpr int kColumns = kTileColumns<A>;
  static constexpr int64_t kWidth = Vec<A>::kWidth;

  SeparablePass(const SeparableParams& params, const FusedOperands& operands)
      : d_(params.depthwise),
        p_(params.pointwise),
        x_(static_cast<const T*>(operands.x)),
        residual_(static_cast<const T*>(operands.residual)),
        residual_strides_(operands.residual_strides),
        y_(static_cast<T*>(operands.y)),
        panels_(ceil_div(p_.K, kColumns)),
        depthwise_filter_(d_, static_cast<const T*>(params.depthwise_w)),
        depthwise_bias_(params.depthwise_bias ? d_.C + kWidth : 0),
        has_depthwise_bias_(params.depthwise_bias != nullptr),
        bias_(bias_as_accumulators<A>(static_cast<const T*>(operands.bias), p_.K)),
        packed_(static_cast<const A*>(operands.packed_w)),
        filter_(static_cast<const T*>(operands.w)),
        prefetched_(int64_t(sizeof(T)) * (d_.H * d_.W * d_.C + d_.P * d_.Q * p_.K) > 1024 * 1024) {
    if (has_depthwise_bias_) copy_run(static_cast<const T*>(params.depthwise_bias), 1, depthwise_bias_.data(), d_.C);
  }

  void run(const Parallel& parallel) {
    if (packed_ == nullptr) pack_filter(parallel);
    plan_ = plan_separable(d_, p_.K, panels_, sizeof(A), parallel.num_threads());
    const int64_t share = ceil_div(panels_, plan_.shares), shares = ceil_div(panels_, share);
    const int64_t rectangles = d_.N * ceil_div(d_.P, plan_.rows) * ceil_div(d_.Q, plan_.columns);
    const int64_t work = plan_.rows * plan_.columns * d_.C * min(p_.K, share * kColumns);
    parallel(0, rectangles * shares, grain_for(work), [&](int64_t begin, int64_t end) {
      const A* middle = nullptr;
      int64_t computed = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t index = task / shares, first = task % shares * share;
        const Rectangle r = rectangle(index);
        if (index != computed) middle = compute_middle(r);
        computed = index;
        multiply(r, middle, first, min(panels_, first + share));
      }
    });
  }

 private:
  static constexpr bool kSameType = std::is_same_v<T, A>;

  Rectangle rectangle(int64_t index) const {
    const int64_t across = ceil_div(d_.Q, plan_.columns), down = ceil_div(d_.P, plan_.rows);
    const int64_t p0 = index / across % down * plan_.rows, q0 = index % across * plan_.columns;
    return {index / (across * down), p0, min(d_.P, p0 + plan_.rows), q0, min(d_.Q, q0 + plan_.columns)};
  }

  void pack_filter(const Parallel& parallel) {
    A* packed = scratch<A>(Slot::kFilter, packed_size(d_.C, p_.K));
    packed_ = packed;
    const int64_t groups = ceil_div(p_.K, kPackedColumns);
    parallel(0, groups, max(1, 32768 / (d_.C * kPackedColumns)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * kPackedColumns;
        transpose(filter_ + first * d_.C, d_.C, packed + first * d_.C, kPackedColumns,
                  min(kPackedColumns, p_.K - first), d_.C);
      }
    });
  }

  /// The middle of a rectangle, (pixel, channel), in this thread's scratch.
  const A* compute_middle(const Rectangle& r) const {
    T* middle = scratch<T>(Slot::kBand, r.pixels() * d_.C);
    SourceRows<T, A> rows(kOutRows * d_.R);
    Scratch<ColumnTap, 32> taps(d_.S);
    for (int64_t s = 0; s < d_.S; ++s) taps[s] = {r.q0 * d_.stride_w + s * d_.dilation_w - d_.pad_w, s};
    int64_t step = 1;
    for (int64_t p = r.p0; p < r.p1; p += step) {
      step = d_.dilation_h == 1 ? min(kOutRows, r.p1 - p) : 1;
      rows.clear();
      CorrelateRows<T, A> call{rows.data(),
                               0,
                               taps.data(),
                               d_.S,
                               depthwise_filter_.taps(),
                               d_.W,
                               d_.x_strides.w,
                               d_.stride_w,
                               {},
                               step,
                               d_.C,
                               r.width(),
                               d_.C,
                               has_depthwise_bias_ ? depthwise_bias_.data() : nullptr,
                               Epilogue<A>(d_.activation),
                               {},
                               {}};
      for (int o = 0; o < step; ++o) {
        call.out[o] = middle + (p + o - r.p0) * r.width() * d_.C;
        for (int64_t tap = 0; tap < d_.R; ++tap) {
          const int64_t h = (p + o) * d_.stride_h + tap * d_.dilation_h - d_.pad_h;
          if (h < 0 || h >= d_.H) continue;
          rows.add(o, x_ + r.n * d_.x_strides.n + h * d_.x_strides.h, depthwise_filter_.row(0, tap));
        }
      }
      call.num_rows = rows.size();
      if (prefetched_) {
        const int64_t first = max(0, (p + step - 1) * d_.stride_h + (d_.R - 1) * d_.dilation_h - d_.pad_h + 1);
        const int64_t count = max(0, min(step * d_.stride_h, d_.H - first));
        call.source_to_come = {x_ + r.n * d_.x_strides.n + first * d_.x_strides.h, count, d_.x_strides.h};
      }
      correlate_rows(call);
    }
    if constexpr (kSameType) {
      return middle;
    } else {
      A* widened = scratch<A>(Slot::kBand2, r.pixels() * d_.C);
      copy_run(middle, 1, widened, r.pixels() * d_.C);
      return widened;
    }
  }

  /// Panels [panel_begin, panel_end) of the output of a rectangle.
  void multiply(const Rectangle& r, const A* middle, int64_t panel_begin, int64_t panel_end) const {
    const int64_t pixels = r.pixels(), tiles = ceil_div(pixels, kTileRows);
    const A** a_rows = scratch<const A*>(Slot::kTable, tiles * kTileRows);
    A** c_rows = scratch<A*>(Slot::kTargets, 2 * pixels);
    const A** residual_rows = residual_ ? const_cast<const A**>(c_rows + pixels) : nullptr;
    A* partial = kSameType ? nullptr : scratch<A>(Slot::kOutput, pixels * kColumns);
    // Tiles of equal height, as far as that goes: a last tile of a single row would wait for its columns.
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = tile * pixels / tiles, last = (tile + 1) * pixels / tiles;
      for (int64_t i = first; i < last; ++i) a_rows[tile * kTileRows + i - first] = middle + i * d_.C;
    }
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t k = panel * kColumns, columns = min(kColumns, p_.K - k);
      int64_t i = 0;
      for (int64_t p = r.p0; p < r.p1; ++p) {
        for (int64_t q = r.q0; q < r.q1; ++q, ++i) {
          if constexpr (kSameType) {
            c_rows[i] = pixel(y_, p_.y_strides, r.n, p, q) + k;
            if (residual_) residual_rows[i] = pixel(residual_, residual_strides_, r.n, p, q) + k;
          } else {
            c_rows[i] = partial + i * kColumns;
            if (residual_) {
              residual_rows[i] = c_rows[i];
              copy_run(pixel(residual_, residual_strides_, r.n, p, q) + k, 1, c_rows[i], columns);
            }
          }
        }
      }
      multiply_panel(k, columns, pixels, tiles, a_rows, c_rows, residual_rows);
      if constexpr (!kSameType) {
        i = 0;
        for (int64_t p = r.p0; p < r.p1; ++p) {
          for (int64_t q = r.q0; q < r.q1; ++q, ++i) {
            copy_run(partial + i * kColumns, 1, pixel(y_, p_.y_strides, r.n, p, q) + k, columns);
          }
        }
      }
    }
  }

  /// The product of one panel with the pixels, in blocks of the depth whose filter stays in L2 for all of them.
  void multiply_panel(int64_t k, int64_t columns, int64_t pixels, int64_t tiles, const A* const* a_rows,
                      A* const* c_rows, const A* const* residual_rows) const {
    constexpr int64_t kDepthBlock = 256 * 1024 / (kColumns * int64_t(sizeof(A)));
    const A* b_row;
    GemmTile<A> tile{nullptr,
                     &b_row,
                     0,
                     1,
                     kPackedColumns,
                     1,
                     0,
                     nullptr,
                     static_cast<int>(columns),
                     nullptr,
                     false,
                     nullptr,
                     bias_ == nullptr ? nullptr : bias_ + k,
                     p_.activation};
    for (int64_t d = 0; d < d_.C; d += kDepthBlock) {
      tile.depth = min(kDepthBlock, d_.C - d);
      tile.a_offset = d;
      tile.finish = d + tile.depth == d_.C;
      b_row = packed_columns(packed_, d_.C, k) + d * kPackedColumns;
      const A* const* addends = d > 0 ? c_rows : residual_rows;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t first = i * pixels / tiles, last = (i + 1) * pixels / tiles;
        tile.a = a_rows + i * kTileRows;
        tile.c = c_rows + first;
        tile.addend = addends == nullptr ? nullptr : addends + first;
        if (prefetched_ && kSameType && i + 1 < tiles && d == 0) {
          prefetch_rows(c_rows + last, (i + 2) * pixels / tiles - last, columns);
        }
        gemm_tile(static_cast<int>(last - first), tile);
      }
    }
  }

  /// Asks for `count` rows of the output, to be written.
  static void prefetch_rows(A* const* rows, int64_t count, int64_t columns) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < columns; j += 64 / sizeof(A)) __builtin_prefetch(rows[i] + j, 1, 2);
    }
  }

  template <class X>
  static X* pixel(X* tensor, const Strides4& s, int64_t n, int64_t p, int64_t q) {
    return tensor + n * s.n + p * s.h + q * s.w;
  }

  const ConvParams &d_, &p_;
  const T* x_;
  const T* residual_;
  const Strides4 residual_strides_;
  T* y_;
  const int64_t panels_;
  const PackedFilter<A> depthwise_filter_;
  Scratch<A, 1024 + kWidth> depthwise_bias_;
  const bool has_depthwise_bias_;
  const A* bias_;
  const A* packed_;
  const T* filter_;
  const bool prefetched_;
  SeparablePlan plan_{};
};

}  // namespace cnnext::cpu::CNNEXT_ISA
