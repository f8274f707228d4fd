// Forward pass and input gradient: a matrix product with output channels as columns.
//
//   rows    = pixels                          (broadcast from the input: no gathering, "implicit GEMM")
//   columns = output channels of a group      (vectors; the filter turned to (t, c, m), in panels of kTileColumns)
//   depth   = taps x channels of a group
//
// First the filter is turned, once, by all threads, unless it comes packed. Then a task owns a rectangle of about 96
// pixels of an image, one group and some filter panels. It tabulates where each pixel's taps lie
// (grouped_pixel_table.h), and runs register tiles of 6 pixels. A panel of the filter is walked in blocks of at most
// 256 KB, which stay in L2 for all the pixels. Channels-last output of the accumulator type is written from registers,
// other output through a tile of scratch.
//
// Channels-last is this kernel's own layout; channels-first pays for turning input and output, (in + out) / 4 cycles a
// pixel and channel, nothing next to a filter of several taps.
//
// Limit: the multiply-add rate.
#pragma once

#include "gemm_tile.h"
#include "grouped_pixel_table.h"
#include "packed_filter.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Bytes of a filter panel that one sweep over the pixels uses.
constexpr int64_t kFilterBlockBytes = 256 * 1024;
/// Pixels of a task, about: enough to use a filter panel from L3 many times, few enough that their input stays in L2.
constexpr int64_t kTaskPixels = 96;

template <class T, class A>
class PixelRowsPass {
 public:
  static constexpr int kColumns = kTileColumns<A>;

  PixelRowsPass(const Pass& pass, Layout in_layout, Layout out_layout, const T* in, const A* bias, T* out)
      : pass_(pass),
        planar_(out_layout == Layout::kNCHW),
        table_(pass, in_layout, in, kTileRows),
        bias_(bias),
        residual_(static_cast<const T*>(pass.residual)),
        out_(out),
        panels_(ceil_div(pass.out_channels, kColumns)) {}

  void run(const Parallel& parallel, const T* filter) {
    prepare_filter(parallel, filter);
    const Rectangles rectangles(pass_, kTaskPixels, pass_.groups, parallel.num_threads(), kTileRows);
    const int64_t pairs = rectangles.count() * pass_.groups;
    const int64_t wanted = pairs >= parallel.num_threads() ? 1 : ceil_div(2 * parallel.num_threads(), pairs);
    const int64_t chunk = ceil_div(panels_, min(panels_, wanted)), chunks = ceil_div(panels_, chunk);
    const int64_t work =
        rectangles.largest_pixels() * min(pass_.out_channels, chunk * kColumns) * max(1, pass_.depth());
    parallel(0, pairs * chunks, grain_for(work), [&](int64_t begin, int64_t end) {
      typename PixelTable<T, A>::Filled filled;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t pair = task / chunks, first = task % chunks * chunk;
        run_rectangle(rectangles.at(pair / pass_.groups), pair % pass_.groups, first, min(panels_, first + chunk),
                      filled);
      }
    });
  }

 private:
  static constexpr bool kSameType = std::is_same_v<T, A>;

  int64_t panel_columns(int64_t panel) const { return min(kColumns, pass_.out_channels - panel * kColumns); }
  int64_t panel_pitch(int64_t panel) const { return padded_columns<A>(panel_columns(panel)); }

  /// The filter as panels (group, panel, t, c, m): in place when its m are already contiguous, else turned in scratch.
  void prepare_filter(const Parallel& parallel, const T* filter) {
    const int64_t depth = pass_.depth();
    if (pass_.packed_filter != nullptr) {
      filter_ = static_cast<const A*>(pass_.packed_filter);
      filter_group_ = packed_size(depth, pass_.out_channels);
      filter_step_ = kPackedColumns;
      return;
    }
    if constexpr (kSameType) {
      if (pass_.num_taps == 1 && pass_.filter_m == 1 && pass_.out_channels % Vec<A>::kWidth == 0) {
        filter_ = filter + pass_.taps[0].index;
        filter_group_ = pass_.filter_group;
        filter_panel_ = kColumns;
        filter_step_ = pass_.filter_c;
        return;
      }
    }
    filter_panel_ = depth * kColumns;
    filter_group_ = depth * padded_columns<A>(pass_.out_channels);
    A* turned = scratch<A>(Slot::kFilter, pass_.groups * filter_group_);
    filter_ = turned;
    if (depth == 0) return;
    const int64_t grain = max(1, 32768 / (depth * kColumns));
    parallel(0, pass_.groups * panels_, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = i / panels_, panel = i % panels_;
        turn_panel(filter + g * pass_.filter_group + panel * kColumns * pass_.filter_m, panel_columns(panel),
                   panel_pitch(panel), turned + g * filter_group_ + panel * filter_panel_);
      }
    });
  }

  const A* filter_panel(int64_t group, int64_t panel) const {
    const A* filter = filter_ + group * filter_group_;
    if (pass_.packed_filter != nullptr) return packed_columns(filter, pass_.depth(), panel * kColumns);
    return filter + panel * filter_panel_;
  }

  void turn_panel(const T* from, int64_t columns, int64_t pitch, A* to) const {
    const int64_t channels = pass_.in_channels, taps = pass_.num_taps;
    if (columns < pitch) fill_zero(to, taps * channels * pitch);
    if (pass_.filter_c == 1) {  // 1x1, forward
      transpose(from + pass_.taps[0].index, pass_.filter_m, to, pitch, columns, channels);
      return;
    }
    if (pass_.rows_contiguous) {
      // Row m holds (c, t). Turn a few channels at a time in scratch, then deal their taps out.
      constexpr int64_t kChannels = Vec<A>::kWidth;
      A* block = scratch<A>(Slot::kTable, kChannels * taps * pitch);
      for (int64_t c0 = 0; c0 < channels; c0 += kChannels) {
        const int64_t count = min(kChannels, channels - c0);
        transpose(from + c0 * taps, pass_.filter_m, block, pitch, columns, count * taps);
        for (int64_t c = 0; c < count; ++c) {
          for (int64_t t = 0; t < taps; ++t) {
            copy_run(block + (c * taps + t) * pitch, 1, to + (t * channels + c0 + c) * pitch, columns);
          }
        }
      }
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) {
        const T* source = from + c * pass_.filter_c + pass_.taps[t].index;
        copy_run(source, pass_.filter_m, to + (t * channels + c) * pitch, columns);
      }
    }
  }

  void run_rectangle(const Rectangle& r, int64_t group, int64_t panel_begin, int64_t panel_end,
                     typename PixelTable<T, A>::Filled& filled) const {
    const int64_t pixels = r.pixels(), segments = table_.segments();
    const A** a_rows = scratch<const A*>(Slot::kTable, table_.size(r) + segments);
    const A** b_rows = a_rows + table_.size(r);
    A** c_rows = scratch<A*>(Slot::kTargets, 2 * pixels);
    const A** residual_rows = residual_ ? const_cast<const A**>(c_rows + pixels) : nullptr;
    table_.locate(r, group * pass_.in_channels, pass_.in_channels, a_rows, filled);

    const bool direct = kSameType && !planar_;
    A* partial = direct ? nullptr : scratch<A>(Slot::kOutput, pixels * kColumns);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t first = group * pass_.out_channels + panel * kColumns, columns = panel_columns(panel);
      int64_t i = 0;
      for (int64_t p = r.p0; p < r.p1; ++p) {
        for (int64_t q = r.q0; q < r.q1; ++q, ++i) {
          if constexpr (kSameType) {
            if (direct) {
              c_rows[i] = out_pixel(r.n, p, q) + first;
              if (residual_) residual_rows[i] = residual_pixel(r.n, p, q) + first;
            }
          }
          if (!direct) {
            c_rows[i] = partial + i * kColumns;
            if (residual_) {
              residual_rows[i] = c_rows[i];
              copy_run(residual_pixel(r.n, p, q) + first, 1, c_rows[i], columns);
            }
          }
        }
      }
      const int64_t step = filter_step_ != 0 ? filter_step_ : panel_pitch(panel);
      GemmTile<A> tile{nullptr,
                       b_rows,
                       0,
                       1,
                       step,
                       0,
                       0,
                       nullptr,
                       static_cast<int>(columns),
                       nullptr,
                       false,
                       nullptr,
                       bias_ == nullptr ? nullptr : bias_ + first,
                       pass_.activation};
      sweep(tile, filter_panel(group, panel), pixels, a_rows, c_rows, residual_rows, b_rows);
      if (direct) continue;
      if (planar_) {
        store_planar(pass_, r, partial, kColumns, columns, out_ + first * pass_.out_strides.c);
      } else {
        i = 0;
        for (int64_t p = r.p0; p < r.p1; ++p) {
          for (int64_t q = r.q0; q < r.q1; ++q, ++i) {
            copy_run(partial + i * kColumns, 1, out_pixel(r.n, p, q) + first, columns);
          }
        }
      }
    }
  }

  T* out_pixel(int64_t n, int64_t p, int64_t q) const {
    return out_ + n * pass_.out_strides.n + p * pass_.out_strides.h + q * pass_.out_strides.w;
  }

  const T* residual_pixel(int64_t n, int64_t p, int64_t q) const {
    const Strides4& s = pass_.residual_strides;
    return residual_ + n * s.n + p * s.h + q * s.w;
  }

  /// One panel over all pixels of a rectangle, in blocks of segments (or of a part of one) that fit kFilterBlockBytes.
  void sweep(GemmTile<A>& tile, const A* filter, int64_t pixels, const A* const* a_rows, A* const* c_rows,
             const A* const* residual_rows, const A** b_rows) const {
    const int64_t segments = table_.segments(), depth = pass_.in_channels * table_.taps_merged();
    const int64_t fitting = max(1, kFilterBlockBytes / (kColumns * int64_t(sizeof(A))));  // filter rows of a block
    const int64_t segment_block = max(1, fitting / depth);
    const int64_t depth_block = segment_block > 1 ? depth : min(depth, fitting);
    for (int64_t s0 = 0; s0 < max(1, segments); s0 += segment_block) {
      tile.segments = min(segment_block, segments - s0);
      for (int64_t d0 = 0; d0 < depth; d0 += depth_block) {
        tile.depth = min(depth_block, depth - d0);
        tile.a_offset = d0;
        for (int64_t s = 0; s < tile.segments; ++s) b_rows[s] = filter + ((s0 + s) * depth + d0) * tile.b_step;
        const A* const* addends = s0 > 0 || d0 > 0 ? c_rows : residual_rows;
        tile.finish = s0 + segment_block >= segments && d0 + depth_block >= depth;
        for (int64_t i = 0; i < pixels; i += kTileRows) {
          tile.a = a_rows + i * segments + s0 * kTileRows;
          tile.c = c_rows + i;
          tile.addend = addends == nullptr ? nullptr : addends + i;
          gemm_tile(static_cast<int>(min(kTileRows, pixels - i)), tile);
        }
      }
    }
  }

  const Pass pass_;
  const bool planar_;  // of the output
  const PixelTable<T, A> table_;
  const A* bias_;
  const T* residual_;
  T* out_;
  const int64_t panels_;
  const A* filter_ = nullptr;
  int64_t filter_group_ = 0, filter_panel_ = 0;
  int64_t filter_step_ = 0;  // between the depths of a panel; 0: the panel's own pitch
};

/// Runs one pass. `bias` holds accumulators, or is null.
template <class T, class A>
void run_pixel_rows(const Pass& pass, Layout in_layout, Layout out_layout, const Parallel& parallel, const T* in,
                    const T* filter, const A* bias, T* out) {
  PixelRowsPass<T, A>(pass, in_layout, out_layout, in, bias, out).run(parallel, filter);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
