// Depthwise convolution, forward, channels_last, square filters of 3, 5 and 7 with stride 1 or 2; and its gradient with
// respect to x where the stride is 1, which is the same with the filter turned round.
//
//   y[n, p, q, c] = activation(bias[c] + sum over r, s of
//                              x[n, p * stride - pad_h + r * dilation_h, q * stride - pad_w + s * dilation_w, c]
//                              * w[c, r, s]),   x = 0 outside the image;   stride 2 only without dilation
//
// A thread owns kVector channels of kWidth columns of y and walks down tile_h rows (depthwise_strip_nhwc.h). It keeps
// the sums of the output rows that the current input row takes part in, so each input row is read once: kColumns
// vectors, on their way while the row before is used, converted to float once and used kFilter^2 times. The oldest sums
// move up a row with each step, which costs nothing: the first product is added to a sum from one register into
// another. The filter is in registers (3x3) or read from shared memory, a tap for all columns.
//
// Assumes is_strip_problem, and fits_vector unless the strips are narrow.
//
// Should reach the bandwidth of memory: of the issue slots in that time it takes 20 % (3x3, float32) to about all of
// them (5x5, 16 bits); with 7x7 arithmetic is the limit. docs/kernels/depthwise_forward_nhwc.md has the figures.
#include "depthwise_strip_nhwc.cuh"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

template <class T, int kFilter_, int kStride_, bool kNarrow>
struct Traits {
  static constexpr Strip kStrip = correlation_strip(kFilter_, kStride_, kNarrow, sizeof(T));
  static constexpr int kFilter = kFilter_, kStride = kStride_;
  static constexpr int kVector = kStrip.vector, kWidth = kStrip.width, kBlocks = kStrip.blocks;
  static constexpr int kTaps = kFilter * kFilter;
  static constexpr int kRows = (kFilter + kStride - 1) / kStride;    // of outputs in flight
  static constexpr int kColumns = (kWidth - 1) * kStride + kFilter;  // of inputs that a strip reads
  static constexpr bool kWeightsInRegisters = kFilter == 3;
  // Products with rows outside the image, and those for outputs outside the tile, are left out where they cost more
  // than the branches that it takes.
  static constexpr bool kSkipsRows = kFilter > 3;
  using Filter = StagedFilter<T, kFilter, kVector>;
};

/// A thread's part of y.
struct Tile {
  int p_first, q_first;  // its first row and column; the others are a dilation apart
  int outputs;           // its rows
};

/// The thread's outputs one after the other, leaving out what lies outside the image. For filters with infinities: the
/// kernel proper multiplies them by the padding's zeros.
template <class K, class T>
__device__ void correlate_slowly(const StripShape& shape, const typename K::Filter& filter, const Tile& tile,
                                 Activation activation, const T* x, const T* bias, T* y) {
#pragma unroll 1
  for (int i = 0; i < tile.outputs * K::kWidth * K::kVector; ++i) {
    const int v = i % K::kVector;
    const int q = tile.q_first + i / K::kVector % K::kWidth * shape.dilation_w;
    const int p = tile.p_first + i / (K::kVector * K::kWidth) * shape.dilation_h;
    if (q >= shape.out.columns) continue;
    float sum = bias == nullptr ? 0.0f : to_accumulator(bias[v]);
#pragma unroll 1
    for (int tap = 0; tap < K::kTaps; ++tap) {
      const int h = p * K::kStride - shape.pad_h + tap / K::kFilter * shape.dilation_h;
      const int w = q * K::kStride - shape.pad_w + tap % K::kFilter * shape.dilation_w;
      if (h < 0 || h >= shape.in.rows || w < 0 || w >= shape.in.columns) continue;
      sum += to_accumulator(x[h * shape.in.row_stride + w * shape.in.column_stride + v]) * filter.weight(tap, v);
    }
    round_to(y[p * shape.out.row_stride + q * shape.out.column_stride + v], activate(sum, activation));
  }
}

template <class K, class T>
__global__ void __launch_bounds__(kStripThreads, K::kBlocks)
    depthwise_forward_nhwc_kernel(StripShape shape, bool flip, Activation activation, const T* __restrict__ x,
                                  const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y) {
  constexpr int kVector = K::kVector, kWidth = K::kWidth, kRows = K::kRows, kColumns = K::kColumns;
  constexpr int kStride = K::kStride, kFilter = K::kFilter;
  CNNEXT_STATIC_SHARED(float, smem_filter, K::Filter::kSize);

  const StripPlace place = find_strip<kVector>(shape);
  const int residue_w = place.strip / shape.strips, residue_h = place.band / shape.tiles % shape.dilation_h;
  const int p_first = residue_h + place.band % shape.tiles * shape.tile_h * shape.dilation_h;
  const int q_first = residue_w + place.strip % shape.strips * kWidth * shape.dilation_w;
  const int outputs = min(shape.tile_h, (shape.out.rows - p_first + shape.dilation_h - 1) / shape.dilation_h);
  // Some residues have fewer rows or columns than others.
  const bool exists = place.exists && outputs > 0 && q_first < shape.out.columns;
  const int64_t image = place.band / shape.tiles / shape.dilation_h;
  x += image * shape.in.image_stride + place.channel;
  y += image * shape.out.image_stride + place.channel;
  if (bias != nullptr) bias += place.channel;

  // Input rows and columns, and what of them is inside the image.
  const int w_first = q_first * kStride - shape.pad_w;
  int h = p_first * kStride - shape.pad_h;
  const int rows = (outputs - 1) * kStride + kFilter;
  const unsigned x_columns = exists ? column_mask(w_first, shape.dilation_w, kColumns, shape.in.columns) : 0u;
  const unsigned x_step = shape.in.column_stride * shape.dilation_w * sizeof(T);
  const T* x_row = x + h * shape.in.row_stride + w_first * shape.in.column_stride;
  int row = 0;
  Channels<T, kVector> next[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) next[i].clear();
  const auto read_row = [&] {
    const bool inside = row < rows && static_cast<unsigned>(h) < static_cast<unsigned>(shape.in.rows);
    const unsigned columns = inside ? x_columns : 0u;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      // Columns outside the image stay zero from the beginning, but a row outside it has to be made zero.
      if (!K::kSkipsRows) next[i].clear();
      if (columns >> i & 1) next[i].read(advance(x_row, x_step, i));
    }
    ++row;
    h += shape.dilation_h;
    x_row += shape.in.row_stride * shape.dilation_h;
    return inside;
  };

  bool next_inside = read_row();  // on its way while the block copies its filters
  const auto filter = K::Filter::stage(smem_filter, w, place.block_channel, shape.channels, flip);
  if (!exists) return;
  if (!filter.is_finite()) {
    return correlate_slowly<K>(shape, filter, {p_first, q_first, outputs}, activation, x, bias, y);
  }
  float weights[K::kWeightsInRegisters ? kFilter : 1][kFilter][kVector];
  if constexpr (K::kWeightsInRegisters) {
#pragma unroll
    for (int r = 0; r < kFilter; ++r) filter.read_row(r, weights[r]);
  }
  float start[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) start[v] = bias == nullptr ? 0.0f : to_accumulator(bias[v]);

  const unsigned y_columns = column_mask(q_first, shape.dilation_w, kWidth, shape.out.columns);
  const unsigned y_step = shape.out.column_stride * shape.dilation_w * sizeof(T);
  T* y_row = y + p_first * shape.out.row_stride + q_first * shape.out.column_stride;

  // In step i the input rows i * kStride + t, t < kStride, are used: by output i - a as its filter row a * kStride + t.
  // Output i - a is sums[kRows - 1 - a].
  float sums[kRows][kWidth][kVector] = {};
#pragma unroll 1
  for (int step = 0; step < outputs + kRows - 1; ++step) {
#pragma unroll
    for (int t = 0; t < kStride; ++t) {
      const bool inside = next_inside;
      float now[kColumns][kVector];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) next[i].unpack(now[i]);
      next_inside = read_row();
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const int a = kRows - 1 - k, r = a * kStride + t;
        if (r >= kFilter) continue;
        if (t == 0) {
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) sums[k][j][v] = k + 1 < kRows ? sums[k + 1][j][v] : start[v];
          }
        }
        if (!K::kSkipsRows || (inside && static_cast<unsigned>(step - a) < static_cast<unsigned>(outputs))) {
          if constexpr (!K::kWeightsInRegisters) filter.read_row(r, weights[0]);
          const auto& taps = weights[K::kWeightsInRegisters ? r : 0];
#pragma unroll
          for (int s = 0; s < kFilter; ++s) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
#pragma unroll
              for (int v = 0; v < kVector; ++v) sums[k][j][v] += now[j * kStride + s][v] * taps[s][v];
            }
          }
        } else if (t == 0) {
          // NOTE: adding zero is a move that the compiler cannot hoist into the branch above, which needs none.
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) sums[k][j][v] += 0.0f;
          }
        }
      }
      if (t == 0 && step >= kRows - 1) {
        activate_strip(sums[0], activation);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if (y_columns >> j & 1) write<T, kVector>(advance(y_row, y_step, j), sums[0][j]);
        }
        y_row += shape.out.row_stride * shape.dilation_h;
      }
    }
  }
}

template <int kStride, bool kNarrow, int kFilter, class T>
void run(const ConvParams& params, bool flip, const LaunchConfig& config, const void* x, const void* w,
         const void* bias, void* y, Stream stream) {
  const StripShape shape = make_strip_shape(params, false, {params.dilation_h, ceil_div(params.P, params.dilation_h)},
                                            {params.dilation_w, ceil_div(params.Q, params.dilation_w)}, config);
  launch(depthwise_forward_nhwc_kernel<Traits<T, kFilter, kStride, kNarrow>, T>,
         dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0], config.block[1], config.block[2]), 0,
         stream, shape, flip, params.activation, static_cast<const T*>(x), static_cast<const T*>(w),
         static_cast<const T*>(bias), static_cast<T*>(y));
}

}  // namespace

void correlate_nhwc(const ConvParams& params, bool flip, const LaunchConfig& config, const void* x, const void* w,
                    const void* bias, void* y, Stream stream) {
  dispatch_strip(params, config.vector == 1, [&](auto element, auto filter, auto narrow) {
    const auto launcher = params.stride_h == 1 ? run<1, narrow.value, filter.value, decltype(element)>
                                               : run<2, narrow.value, filter.value, decltype(element)>;
    launcher(params, flip, config, x, w, bias, y, stream);
  });
}

void depthwise_forward_nhwc(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                            const void* bias, void* y, Stream stream) {
  correlate_nhwc(params, false, config, x, w, bias, y, stream);
}

}  // namespace cnnext::cuda
