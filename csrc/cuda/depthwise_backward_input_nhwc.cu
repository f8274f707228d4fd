// Gradient of a depthwise convolution with respect to its input, channels_last, square filters of 3, 5 and 7.
//
//   dx[n, h, w, c] = sum over r, s of dy[n, (h + pad_h - r) / stride, (w + pad_w - s) / stride, c] * w[c, r, s],
//                    over the r, s whose quotients are whole numbers inside dy
//
// With stride 1 this is the forward kernel with the filter turned round (depthwise_forward_nhwc.cu). With stride 2,
// here, the pixels of dx fall into four classes by the parity of h + pad_h and w + pad_w, and those of a class all have
// the same taps: with h + pad_h = 2u + e, the filter rows are r = 2a + e, and that row meets row u - a of dy. So no
// thread tests divisibility: it owns kVector channels of kWidth pairs of columns and walks down tile_h pairs of rows
// (depthwise_strip_nhwc.h). It keeps the sums of the pairs of rows that the current row of dy takes part in, so each
// row of dy is read once: kColumns vectors, on their way while the row before is used.
//
// Assumes is_strip_problem, and fits_vector unless the strips are narrow; for stride 2, dilation 1.
//
// Should reach the bandwidth of memory, four fifths of which are writes of dx; of the issue slots in that time it takes
// a third (3x3, 16 bits) at most. docs/kernels/depthwise_backward_input_nhwc.md has the figures.
#include "depthwise_strip_nhwc.cuh"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

template <class T, int kFilter_, bool kNarrow>
struct Traits {
  static constexpr Strip kStrip = transposed_strip(kFilter_, kNarrow);
  static constexpr int kFilter = kFilter_;
  static constexpr int kVector = kStrip.vector, kWidth = kStrip.width, kBlocks = kStrip.blocks;
  static constexpr int kTaps = kFilter * kFilter;
  static constexpr int kRows = (kFilter + 1) / 2;      // pairs of rows in flight
  static constexpr int kColumns = kWidth + kRows - 1;  // of dy that a strip reads
  static constexpr bool kWeightsInRegisters = kFilter == 3;
  using Filter = StagedFilter<T, kFilter, kVector>;
};

/// A thread's part of dx, in pairs.
struct Tile {
  int u_first, v_first;  // its first pair of rows and of columns
  int pairs;             // of rows
};

/// The thread's pixels one after the other, leaving out what lies outside dy. For filters with infinities: the kernel
/// proper multiplies them by zeros there.
template <class K, class T>
__device__ void transpose_slowly(const StripShape& shape, const typename K::Filter& filter, const Tile& tile,
                                 const T* dy, T* dx) {
  constexpr int kPixels = 2 * K::kWidth;  // of a row
#pragma unroll 1
  for (int i = 0; i < tile.pairs * 2 * kPixels * K::kVector; ++i) {
    const int v = i % K::kVector;
    const int padded_w = 2 * tile.v_first + i / K::kVector % kPixels;
    const int padded_h = 2 * tile.u_first + i / (K::kVector * kPixels);
    const int h = padded_h - shape.pad_h, w = padded_w - shape.pad_w;
    if (h < 0 || h >= shape.out.rows || w < 0 || w >= shape.out.columns) continue;
    float sum = 0;
#pragma unroll 1
    for (int tap = 0; tap < K::kTaps; ++tap) {
      const int p2 = padded_h - tap / K::kFilter, q2 = padded_w - tap % K::kFilter;  // twice p and q
      if (p2 < 0 || p2 % 2 != 0 || p2 / 2 >= shape.in.rows) continue;
      if (q2 < 0 || q2 % 2 != 0 || q2 / 2 >= shape.in.columns) continue;
      sum += to_accumulator(dy[p2 / 2 * shape.in.row_stride + q2 / 2 * shape.in.column_stride + v]) *
             filter.weight(tap, v);
    }
    round_to(dx[h * shape.out.row_stride + w * shape.out.column_stride + v], sum);
  }
}

template <class K, class T>
__global__ void __launch_bounds__(kStripThreads, K::kBlocks)
    depthwise_backward_input_nhwc_kernel(StripShape shape, const T* __restrict__ dy, const T* __restrict__ w,
                                         T* __restrict__ dx) {
  constexpr int kVector = K::kVector, kWidth = K::kWidth, kRows = K::kRows, kColumns = K::kColumns;
  constexpr int kFilter = K::kFilter;
  CNNEXT_STATIC_SHARED(float, smem_filter, K::Filter::kSize);

  const StripPlace place = find_strip<kVector>(shape);
  // The first pair may begin with a row (column) of padding, the last pair end with one.
  const int u_last = (shape.out.rows - 1 + shape.pad_h) / 2;
  const int u_first = shape.pad_h / 2 + place.band % shape.tiles * shape.tile_h;
  const int v_first = shape.pad_w / 2 + place.strip * kWidth;
  const int pairs = min(shape.tile_h, u_last + 1 - u_first);
  const int64_t image = place.band / shape.tiles;
  dy += image * shape.in.image_stride + place.channel;
  dx += image * shape.out.image_stride + place.channel;

  // Rows and columns of dy, and what of them is inside it.
  const int q_first = v_first - (kRows - 1);
  int p = u_first - (kRows - 1);
  const int p_end = u_first + pairs;
  const unsigned dy_columns = place.exists ? column_mask(q_first, 1, kColumns, shape.in.columns) : 0u;
  const unsigned dy_step = shape.in.column_stride * sizeof(T);
  const T* dy_row = dy + p * shape.in.row_stride + q_first * shape.in.column_stride;
  Channels<T, kVector> next[kColumns];
  const auto read_row = [&] {
    const unsigned columns =
        p < p_end && static_cast<unsigned>(p) < static_cast<unsigned>(shape.in.rows) ? dy_columns : 0u;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      next[i].clear();
      if (columns >> i & 1) next[i].read(advance(dy_row, dy_step, i));
    }
    ++p;
    dy_row += shape.in.row_stride;
  };

  read_row();  // on its way while the block copies its filters
  const auto filter = K::Filter::stage(smem_filter, w, place.block_channel, shape.channels, false);
  if (!place.exists) return;
  if (!filter.is_finite()) return transpose_slowly<K>(shape, filter, {u_first, v_first, pairs}, dy, dx);
  float weights[K::kWeightsInRegisters ? kFilter : 1][kFilter][kVector];
  if constexpr (K::kWeightsInRegisters) {
#pragma unroll
    for (int r = 0; r < kFilter; ++r) filter.read_row(r, weights[r]);
  }

  const int w_first = 2 * v_first - shape.pad_w;
  int h = 2 * u_first - shape.pad_h;
  const unsigned dx_columns = column_mask(w_first, 1, 2 * kWidth, shape.out.columns);
  const unsigned dx_step = shape.out.column_stride * sizeof(T);
  T* dx_row = dx + h * shape.out.row_stride + w_first * shape.out.column_stride;

  // In step i row i of dy, counted from p, is used: by the pair u = p + a as its filter rows 2a and 2a + 1. Pair p + a
  // is sums[a], and so are columns: pixel 2j + f of a row gets filter columns s = 2b + f from column j - b of dy.
  float sums[kRows][2][2 * kWidth][kVector] = {};
#pragma unroll 1
  for (int step = 0; step < pairs + kRows - 1; ++step) {
    float now[kColumns][kVector];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) next[i].unpack(now[i]);
    read_row();
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int r = 2 * a + e;
#pragma unroll
        for (int i = 0; i < 2 * kWidth; ++i) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) sums[a][e][i][v] = a + 1 < kRows ? sums[a + 1][e][i][v] : 0.0f;
        }
        if (r >= kFilter) continue;
        if constexpr (!K::kWeightsInRegisters) filter.read_row(r, weights[0]);
        const auto& taps = weights[K::kWeightsInRegisters ? r : 0];
#pragma unroll
        for (int s = 0; s < kFilter; ++s) {
#pragma unroll
          for (int j = 0; j < kWidth; ++j) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
              sums[a][e][2 * j + s % 2][v] += now[j - s / 2 + kRows - 1][v] * taps[s][v];
            }
          }
        }
      }
    }
    if (step >= kRows - 1) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const unsigned columns = static_cast<unsigned>(h) < static_cast<unsigned>(shape.out.rows) ? dx_columns : 0u;
#pragma unroll
        for (int i = 0; i < 2 * kWidth; ++i) {
          if (columns >> i & 1) write<T, kVector>(advance(dx_row, dx_step, i), sums[0][e][i]);
        }
        ++h;
        dx_row += shape.out.row_stride;
      }
    }
  }
}

}  // namespace

void depthwise_backward_input_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w,
                                   void* dx, Stream stream) {
  if (params.stride_h == 1) {
    return correlate_nhwc(gradient_as_correlation(params), true, config, dy, w, nullptr, dx, stream);
  }
  const StripShape shape =
      make_strip_shape(params, true, pairs_axis(params.H, params.pad_h), pairs_axis(params.W, params.pad_w), config);
  dispatch_strip(params, config.vector == 1, [&](auto element, auto filter, auto narrow) {
    using T = decltype(element);
    launch(depthwise_backward_input_nhwc_kernel<Traits<T, filter.value, narrow.value>, T>,
           dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0], config.block[1], config.block[2]), 0,
           stream, shape, static_cast<const T*>(dy), static_cast<const T*>(w), static_cast<T*>(dx));
  });
}

}  // namespace cnnext::cuda
