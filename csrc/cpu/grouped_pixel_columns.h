// Forward pass and input gradient, channels-first: a matrix product with pixels as columns.
//
//   rows    = output channels of a group      (the filter, read in place: row m is contiguous over (c, t))
//   columns = pixels over all images          (vectors; a panel of kTileColumns pixels)
//   depth   = channels x taps of a group
//
// A task owns one panel of pixels, one group, and some of its output channels. It gathers the input of the panel into
// scratch, (depth, kTileColumns) with zeros for padding ("im2col" of one panel, at most 256 KB: it stays in L2), and
// runs register tiles down the output channels. Bias and activation are applied in registers; a panel whose pixels are
// not contiguous in the output, or of another type, goes through a tile of scratch.
//
// Also used for channels-last problems of a few pixels, where turning the filter would cost more than the product.
//
// Limit: the multiply-add rate for more than about 16 output channels a group, else the gathering, one load and one
// store for `out_channels` multiply-adds.
#pragma once

#include "gemm_tile.h"
#include "grouped_pass.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Bytes of a gathered panel: a part of L2 that leaves room for the filter's rows.
constexpr int64_t kPanelBytes = 256 * 1024;

/// A run of pixels of one output row inside a panel.
struct PixelRun {
  int64_t n, p, q;
  int64_t out_offset;  // elements, of channel 0
  int column, length;
};

/// The part of a run that a tap finds inside the image.
struct TapRun {
  int64_t in_offset;  // elements, of channel 0
  int column, length;
};

template <class T, class A>
class PixelColumnsPass {
 public:
  static constexpr int kColumns = kTileColumns<A>;

  PixelColumnsPass(const Pass& pass, const T* in, const T* filter, const A* bias, T* out)
      : pass_(pass), in_(in), bias_(bias), out_(out) {
    const int64_t channel_bytes = max(1, pass.num_taps) * kColumns * int64_t(sizeof(A));
    channel_block_ = max(1, min(pass.in_channels, kPanelBytes / channel_bytes));
    if constexpr (std::is_same_v<T, A>) {
      // One tap: a step of filter_c walks the channels. More: only if they lie in (c, t) order.
      if (pass.num_taps == 1 || pass.rows_contiguous) {
        filter_ = filter + (pass.num_taps == 1 ? pass.taps[0].index : 0);
        filter_group_ = pass.filter_group;
        filter_row_ = pass.filter_m;
        filter_step_ = pass.num_taps == 1 ? pass.filter_c : 1;
      }
    }
  }

  void run(const Parallel& parallel, const T* filter) {
    if (filter_ == nullptr) pack_filter(parallel, filter);
    const int64_t panels = ceil_div(pass_.pixels(), kColumns), pairs = panels * pass_.groups;
    // Few panels: share the output channels of each among threads, at the price of gathering a panel more than once.
    const int64_t wanted = pairs >= 2 * parallel.num_threads() ? 1 : ceil_div(2 * parallel.num_threads(), pairs);
    const int64_t rows = round_rows(ceil_div(pass_.out_channels, min(wanted, ceil_div(pass_.out_channels, 32))));
    const int64_t row_chunks = ceil_div(pass_.out_channels, rows);
    const int64_t tasks = pairs * row_chunks;
    parallel(0, tasks, grain_for(kColumns * rows * pass_.depth()), [&](int64_t begin, int64_t end) {
      Panel panel;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t index = task / (pass_.groups * row_chunks), rest = task % (pass_.groups * row_chunks);
        if (index != panel.index) locate(index, panel);
        const int64_t m0 = rest % row_chunks * rows;
        run_panel(panel, rest / row_chunks, m0, min(pass_.out_channels, m0 + rows));
      }
    });
  }

 private:
  struct Panel {
    int64_t index = -1;
    int columns = 0, num_runs = 0;
    PixelRun runs[kColumns];
    TapRun* tap_runs;  // those of tap t are [tap_begin[t], tap_begin[t + 1])
    int64_t* tap_begin;
  };

  static int64_t round_rows(int64_t rows) { return ceil_div(rows, kTileRows) * kTileRows; }

  /// Filter rows as accumulators, (groups, out_channels, in_channels, places of the taps).
  void pack_filter(const Parallel& parallel, const T* filter) {
    const int64_t depth = pass_.depth(), rows = pass_.groups * pass_.out_channels, taps = pass_.num_taps;
    A* packed = scratch<A>(Slot::kFilter, rows * depth);
    filter_ = packed;
    filter_group_ = pass_.out_channels * depth;
    filter_row_ = depth;
    filter_step_ = 1;
    if (depth == 0) return;
    parallel(0, rows, max(1, 65536 / max(1, depth)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t g = row / pass_.out_channels, m = row % pass_.out_channels;
        const T* from = filter + g * pass_.filter_group + m * pass_.filter_m;
        A* to = packed + row * depth;
        if (pass_.rows_contiguous) {
          copy_run(from, 1, to, depth);
        } else if (pass_.all_taps) {
          for (int64_t c = 0; c < pass_.in_channels; ++c) copy_run(from + c * pass_.filter_c, 1, to + c * taps, taps);
        } else {
          for (int64_t c = 0; c < pass_.in_channels; ++c) {
            for (int64_t t = 0; t < taps; ++t) {
              to[c * taps + t] = load_scalar<A>(from + c * pass_.filter_c + pass_.taps[t].index);
            }
          }
        }
      }
    });
  }

  /// Finds the pixel runs of panel `index` and where each tap reads them.
  void locate(int64_t index, Panel& panel) const {
    const int64_t first = index * kColumns, image = pass_.out_h * pass_.out_w;
    panel.index = index;
    panel.columns = static_cast<int>(min(kColumns, pass_.pixels() - first));
    panel.num_runs = 0;
    for (int column = 0; column < panel.columns;) {
      const int64_t pixel = first + column, n = pixel / image, p = pixel % image / pass_.out_w, q = pixel % pass_.out_w;
      const int length = static_cast<int>(min(pass_.out_w - q, panel.columns - column));
      const Strides4& out = pass_.out_strides;
      panel.runs[panel.num_runs++] = {n, p, q, n * out.n + p * out.h + q * out.w, column, length};
      column += length;
    }
    const int64_t taps = pass_.num_taps;
    const int64_t run_bytes = taps * panel.num_runs * int64_t(sizeof(TapRun));
    char* table = scratch<char>(Slot::kTable, run_bytes + (taps + 1) * int64_t(sizeof(int64_t)));
    panel.tap_runs = reinterpret_cast<TapRun*>(table);
    panel.tap_begin = reinterpret_cast<int64_t*>(table + run_bytes);
    int64_t count = 0;
    for (int64_t t = 0; t < taps; ++t) {
      panel.tap_begin[t] = count;
      const Tap& tap = pass_.taps[t];
      // Outputs q with 0 <= q * step_w + dw < in_w.
      const int64_t q_begin = tap.dw >= 0 ? 0 : ceil_div(-tap.dw, pass_.step_w);
      const int64_t q_end = tap.dw >= pass_.in_w ? 0 : ceil_div(pass_.in_w - tap.dw, pass_.step_w);
      for (int i = 0; i < panel.num_runs; ++i) {
        const PixelRun& run = panel.runs[i];
        const int64_t h = run.p * pass_.step_h + tap.dh;
        const int64_t lo = max(run.q, q_begin), hi = min(run.q + run.length, q_end);
        if (h < 0 || h >= pass_.in_h || lo >= hi) continue;
        const Strides4& in = pass_.in_strides;
        panel.tap_runs[count++] = {run.n * in.n + h * in.h + (lo * pass_.step_w + tap.dw) * in.w,
                                   static_cast<int>(run.column + lo - run.q), static_cast<int>(hi - lo)};
      }
    }
    panel.tap_begin[taps] = count;
  }

  /// Place of tap t among the taps of a channel, in the panel and in the filter's rows.
  int64_t tap_place(int64_t t) const { return pass_.all_taps ? pass_.taps[t].index : t; }

  /// b(c * taps + place of t, column) = in(c0 + c, where tap t reads the pixel of the column).
  void gather(const Panel& panel, const T* in, int64_t channels, A* b) const {
    const int64_t taps = pass_.num_taps, step = pass_.step_w * pass_.in_strides.w;
    for (int64_t t = 0; t < taps; ++t) {
      const TapRun* begin = panel.tap_runs + panel.tap_begin[t];
      const TapRun* end = panel.tap_runs + panel.tap_begin[t + 1];
      int covered = 0;
      for (const TapRun* run = begin; run < end; ++run) covered += run->length;
      A* row = b + tap_place(t) * kColumns;
      for (int64_t c = 0; c < channels; ++c, row += taps * kColumns) {
        if (covered < kColumns) fill_zero(row, kColumns);
        const T* from = in + c * pass_.in_strides.c;
        for (const TapRun* run = begin; run < end; ++run) {
          copy_run(from + run->in_offset, step, row + run->column, run->length);
        }
      }
    }
  }

  void run_panel(const Panel& panel, int64_t group, int64_t m0, int64_t m1) const {
    const T* in = in_ + group * pass_.in_channels * pass_.in_strides.c;
    T* out = out_ + group * pass_.out_channels * pass_.out_strides.c;
    const A* filter = filter_ + group * filter_group_;
    const A* bias = bias_ == nullptr ? nullptr : bias_ + group * pass_.out_channels;

    bool direct = false;
    if constexpr (std::is_same_v<T, A>) direct = panel.num_runs == 1 && pass_.out_strides.w == 1;
    A* c_base = nullptr;
    int64_t c_row = kColumns;
    if constexpr (std::is_same_v<T, A>) {
      if (direct) {
        c_base = out + panel.runs[0].out_offset + m0 * pass_.out_strides.c;
        c_row = pass_.out_strides.c;
      }
    }
    if (!direct) c_base = scratch<A>(Slot::kOutput, (m1 - m0) * kColumns);

    const int64_t taps = pass_.num_taps;
    A* b = scratch<A>(Slot::kPanel, channel_block_ * taps * kColumns);
    const A* a_rows[kTileRows];
    A* c_rows[kTileRows];
    const A* const b_rows = b;
    GemmTile<A> tile{a_rows,
                     &b_rows,
                     0,
                     filter_step_,
                     kColumns,
                     taps == 0 ? 0 : 1,
                     0,
                     c_rows,
                     direct ? panel.columns : kColumns,
                     nullptr,
                     false,
                     nullptr,
                     nullptr,
                     pass_.activation};
    for (int64_t c0 = 0; c0 < pass_.in_channels; c0 += channel_block_) {
      const int64_t channels = min(channel_block_, pass_.in_channels - c0);
      gather(panel, in + c0 * pass_.in_strides.c, channels, b);
      tile.depth = channels * taps;
      tile.addend = c0 > 0 ? c_rows : nullptr;
      tile.finish = c0 + channels == pass_.in_channels;
      for (int64_t m = m0; m < m1; m += kTileRows) {
        const int rows = static_cast<int>(min(kTileRows, m1 - m));
        for (int i = 0; i < rows; ++i) {
          a_rows[i] = filter + (m + i) * filter_row_ + c0 * taps * filter_step_;
          c_rows[i] = c_base + (m - m0 + i) * c_row;
        }
        tile.row_bias = bias == nullptr ? nullptr : bias + m;
        gemm_tile(rows, tile);
      }
    }
    if (direct) return;
    for (int64_t m = m0; m < m1; ++m) {
      for (int i = 0; i < panel.num_runs; ++i) {
        const PixelRun& run = panel.runs[i];
        const A* from = c_base + (m - m0) * kColumns + run.column;
        T* to = out + m * pass_.out_strides.c + run.out_offset;
        if (pass_.out_strides.c == 1) {
          // Between the pixels of a channel lie other channels, which other threads may be writing.
          for (int j = 0; j < run.length; ++j) store_scalar<A>(to + j * pass_.out_strides.w, from[j]);
        } else {
          scatter_run(from, to, pass_.out_strides.w, run.length);
        }
      }
    }
  }

  const Pass pass_;
  const T* in_;
  const A* bias_;
  T* out_;
  int64_t channel_block_;
  // Rows of the filter as accumulators: in place, or the packed copy.
  const A* filter_ = nullptr;
  int64_t filter_group_ = 0, filter_row_ = 0, filter_step_ = 1;
};

/// Runs one pass. `bias` holds accumulators, or is null.
template <class T, class A>
void run_pixel_columns(const Pass& pass, const Parallel& parallel, const T* in, const T* filter, const A* bias,
                       T* out) {
  PixelColumnsPass<T, A>(pass, in, filter, bias, out).run(parallel, filter);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
