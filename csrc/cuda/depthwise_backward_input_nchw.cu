// Depthwise convolution, gradient with respect to the input, channels first.
//
//   dx[n, c, h, w] = sum over r, s with h + pad_h - r and w + pad_w - s divisible by the stride, and p, q their
//                    quotients, of dy[n, c, p, q] * w[c, r, s],   dy = 0 outside its planes
//
// dy: N x C x P x Q, w: C x R x S, dx: N x C x H x W, with any strides but 1 for Q and W. Filters of 3 x 3, 5 x 5 and
// 7 x 7, strides 1 and 2, one output channel for each input channel.
//
// Stride 1 is the forward kernel with the filter turned round. Stride 2 has a kernel here. Number pixels by
// u = h + pad_h, v = w + pad_w: an even u takes the even rows of the filter and an odd u the odd ones, and so do
// columns, so that each of the four classes of pixels has taps of its own and nobody tests whether 2 divides something.
//
// A block owns whole planes of dx that follow one another, or a band of rows of one plane (TileNchw). It copies the
// rows of dy that they need into shared memory as one run, computes, leaves its pixels in shared memory, and writes
// them as one run. A thread owns up to 14 columns and 14 rows of dx. It walks down pairs of rows, keeps the (R + 1) / 2
// rows of dy that a pair needs in registers, and loads one new one a pair.
//
// Limit: memory, dy read and dx written once (docs/kernels/depthwise_backward_input_nchw.md).
#include "depthwise_nchw_copy.cuh"
#include "portability.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = backward_input_nchw_patch().threads;
// Leaves 168 registers to a thread; without it the compiler saves registers by computing things again.
constexpr int kMinBlocks = 384 / kThreads;
constexpr int kTileW = backward_input_nchw_patch().columns;

/// A thread's part of a block's work.
template <class T>
struct Task {
  const T* dy;      // [rows_of_dy][Q], of which the first is row dy_row of the plane
  const T* filter;  // [R][S]
  T* dx;            // [rows of the band][W], at the patch's first pixel
  int dy_row;
  int h, w;  // of the patch's first pixel
  int rows, columns;
};

/// Any dilation.
template <class T>
__device__ __forceinline__ void compute_any(const ConvParams& params, const Task<T>& task) {
  const int W = static_cast<int>(params.W), P = static_cast<int>(params.P), Q = static_cast<int>(params.Q);
  const int R = static_cast<int>(params.R), S = static_cast<int>(params.S);
  const int dilation_h = static_cast<int>(params.dilation_h), dilation_w = static_cast<int>(params.dilation_w);
  const int u = task.h + static_cast<int>(params.pad_h), v = task.w + static_cast<int>(params.pad_w);
#pragma unroll 1
  for (int i = 0; i < task.rows; ++i) {
#pragma unroll 1
    for (int j = 0; j < task.columns; ++j) {
      float sum = 0;
#pragma unroll 1
      for (int r = 0; r < R; ++r) {
        const int p = (u + i - r * dilation_h) >> 1;
        if (p < 0 || p >= P || 2 * p != u + i - r * dilation_h) continue;
#pragma unroll 1
        for (int s = 0; s < S; ++s) {
          const int q = (v + j - s * dilation_w) >> 1;
          if (q < 0 || q >= Q || 2 * q != v + j - s * dilation_w) continue;
          sum += to_accumulator(task.dy[(p - task.dy_row) * Q + q]) * to_accumulator(task.filter[r * S + s]);
        }
      }
      T pixel;
      round_to(pixel, sum);
      store(task.dx + i * W + j, pixel);
    }
  }
}

/// The patch, without dilation.
template <int kFilter, class T>
__device__ __forceinline__ void compute_patch(const ConvParams& params, const Task<T>& task) {
  // An even pixel u takes taps r = 2 a of rows p = u / 2 - a for a up to kReach, an odd one r = 2 a + 1 for a below it.
  constexpr int kReach = (kFilter - 1) / 2;
  // Pairs of columns that hold kTileW pixels wherever the first pair begins.
  constexpr int kPairs = kTileW / 2 + 1;
  constexpr int kColumns = kPairs + kReach;
  const int W = static_cast<int>(params.W), P = static_cast<int>(params.P), Q = static_cast<int>(params.Q);

  float filter[kFilter][kFilter];
#pragma unroll
  for (int tap = 0; tap < kFilter * kFilter; ++tap) {
    filter[tap / kFilter][tap % kFilter] = to_accumulator(task.filter[tap]);
  }

  // The first pair of rows, and of columns, may begin one pixel before the patch: u and v of a pair are even.
  const int odd_h = static_cast<int>(params.pad_h) & 1, odd_w = static_cast<int>(params.pad_w) & 1;
  const int p_first = (task.h + static_cast<int>(params.pad_h)) >> 1;
  const int q_first = ((task.w + static_cast<int>(params.pad_w)) >> 1) - kReach;

  const auto load_row = [&](int p, float (&values)[kColumns]) {
    const int row = (p - task.dy_row) * Q + q_first;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const bool inside = p >= 0 && p < P && q_first + c >= 0 && q_first + c < Q;
      values[c] = inside ? to_accumulator(task.dy[row + c]) : 0.0f;
    }
  };

  float dy[kReach + 1][kColumns];  // rows p, p - 1, ... of a pair
#pragma unroll
  for (int a = 0; a < kReach; ++a) load_row(p_first - 1 - a, dy[a]);

#pragma unroll 1
  for (int pair = 0; 2 * pair - odd_h < task.rows; ++pair) {
#pragma unroll
    for (int a = kReach; a > 0; --a) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) dy[a][c] = dy[a - 1][c];
    }
    load_row(p_first + pair, dy[0]);

#pragma unroll
    for (int odd_u = 0; odd_u < 2; ++odd_u) {
      const int i = 2 * pair + odd_u - odd_h;
      if (i < 0 || i >= task.rows) continue;
      // One pixel more than a patch has: the first is outside if the pair begins before the patch, else the last.
      float sums[kTileW + 1];
#pragma unroll
      for (int v = 0; v <= kTileW; ++v) {
        sums[v] = 0;
#pragma unroll
        for (int r = odd_u; r < kFilter; r += 2) {
#pragma unroll
          for (int s = v % 2; s < kFilter; s += 2) sums[v] += dy[r / 2][kReach + v / 2 - s / 2] * filter[r][s];
        }
      }
#pragma unroll
      for (int v = 0; v <= kTileW; ++v) {
        const int j = v - odd_w;
        T pixel;
        round_to(pixel, sums[v]);
        if (j >= 0 && j < task.columns) store(task.dx + i * W + j, pixel);
      }
    }
  }
}

template <class T, int kFilter>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    depthwise_backward_input_nchw_kernel(ConvParams params, TileNchw tile, const T* __restrict__ dy,
                                         const T* __restrict__ w, T* __restrict__ dx) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, smem);

  // The block's pixels: `planes` planes from c on in image n, rows h to h + rows - 1.
  const BlockNchw block = block_nchw(tile);
  const int c = block.group * tile.planes;
  const int64_t n = block.image;
  const int planes = min(tile.planes, static_cast<int>(params.C) - c);
  const int h = block.band * tile.band_rows;
  const int rows = min(tile.band_rows, static_cast<int>(params.H) - h);
  const PlaneRows<T> dx_rows{dx + n * params.x_strides.n + c * params.x_strides.c + h * params.x_strides.h,
                             params.x_strides.c,
                             params.x_strides.h,
                             planes,
                             rows,
                             static_cast<int>(params.W),
                             tile.dense_output};

  // What they need of dy: whole planes, or those rows of one that exist.
  const int P = static_cast<int>(params.P), pad_h = static_cast<int>(params.pad_h);
  const int reach = (kFilter - 1) * static_cast<int>(params.dilation_h);
  const int p = tile.bands == 1 ? 0 : min(max((h + pad_h - reach) >> 1, 0), P);
  const int p_end = tile.bands == 1 ? P : max(p, min(((h + rows - 1 + pad_h) >> 1) + 1, P));
  const PlaneRows<const T> dy_rows{dy + n * params.y_strides.n + c * params.y_strides.c + p * params.y_strides.h,
                                   params.y_strides.c,
                                   params.y_strides.h,
                                   planes,
                                   p_end - p,
                                   static_cast<int>(params.Q),
                                   tile.dense_input};

  constexpr int kArea = kFilter * kFilter;
  const T* smem_dy = copy_in<kThreads>(reinterpret_cast<T*>(smem), dy_rows);
  const T* smem_w = copy_in<kThreads>(reinterpret_cast<T*>(smem + tile.filter_offset),
                                      {w + int64_t{c} * kArea, kArea, kArea, 1, 1, planes * kArea, true});
  T* smem_dx = place_of_output(reinterpret_cast<T*>(smem + tile.output_offset), dx_rows);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();

  for (int i = threadIdx.x; i < planes * tile.patches; i += kThreads) {
    const PatchNchw patch = patch_nchw(tile, i);
    const int first_row = patch.below * tile.patch_rows;  // in the band
    if (first_row >= rows) continue;
    const int W = static_cast<int>(params.W);
    Task<T> task;
    task.dy = smem_dy + patch.plane * dy_rows.rows * dy_rows.columns;
    task.filter = smem_w + patch.plane * kArea;
    task.dy_row = p;
    task.h = h + first_row;
    task.w = patch.strip * kTileW;
    task.dx = smem_dx + (patch.plane * rows + first_row) * W + task.w;
    task.rows = min(tile.patch_rows, rows - first_row);
    task.columns = min(kTileW, W - task.w);

    if (params.dilation_h == 1 && params.dilation_w == 1) {
      compute_patch<kFilter>(params, task);
    } else {
      compute_any(params, task);
    }
  }
  __syncthreads();
  copy_out<kThreads>(dx_rows, smem_dx);
}

template <class T>
void run_stride_2(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w, void* dx,
                  Stream stream) {
  const auto with_filter = [&](auto filter) {
    launch(depthwise_backward_input_nchw_kernel<T, decltype(filter)::value>,
           dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0]), config.shared_bytes, stream, params,
           backward_input_nchw_tile(params, config), static_cast<const T*>(dy), static_cast<const T*>(w),
           static_cast<T*>(dx));
  };
  switch (params.R) {
    case 3: return with_filter(std::integral_constant<int, 3>());
    case 5: return with_filter(std::integral_constant<int, 5>());
    default: return with_filter(std::integral_constant<int, 7>());
  }
}

}  // namespace

void depthwise_backward_input_nchw(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w,
                                   void* dx, Stream stream) {
  if (params.stride_h == 1) {
    return depthwise_forward_nchw_turned(turned_round(params), config, dy, w, nullptr, dx, true, stream);
  }
  switch (params.dtype) {
    case DType::kFloat16: return run_stride_2<__half>(params, config, dy, w, dx, stream);
    case DType::kBFloat16: return run_stride_2<__nv_bfloat16>(params, config, dy, w, dx, stream);
    default: return run_stride_2<float>(params, config, dy, w, dx, stream);
  }
}

}  // namespace cnnext::cuda
