// Depthwise convolution, forward, channels first.
//
//   y[n, k, p, q] = activation(bias[k] + sum over r, s of x[n, k / m, p * stride - pad_h + r, q * stride - pad_w + s]
//                              * w[k, r, s]),   m = K / C the channel multiplier, x = 0 outside the image
//
// x: N x C x H x W, w: K x R x S, y: N x K x P x Q, with any strides but 1 for W and Q. Filters of 3 x 3, 5 x 5 and
// 7 x 7, strides 1 and 2.
//
// A block owns whole planes of y that follow one another, or a band of rows of one plane (TileNchw). It copies the
// rows of x that they need into shared memory as one run, computes, leaves its sums in shared memory, and writes them
// as one run. A thread owns a patch of kTileH x 7 outputs and walks down the rows of x: it loads a row's elements once,
// and uses each for all outputs of the patch. The filter lies in registers. The last patch of a row is moved left so
// that all its outputs exist; those that its neighbour has too are not stored.
//
// 7 is odd, so lanes that read neighbouring patches of a row read from different banks; with the 7 x 7 patches of a
// plane whose sides are 7 times a power of two, all 32 lanes do.
//
// Limit: memory for 3 x 3 and 5 x 5, float32 FMA for 7 x 7 (docs/kernels/depthwise_forward_nchw.md).
#include "depthwise_nchw_copy.cuh"
#include "portability.h"

namespace cnnext::cuda {
namespace {

// Leaves 128 registers to a thread; without it the compiler saves registers by computing things again.
constexpr int kMinWarps = 16;

/// The patch of a thread.
template <int kFilter, int kStride>
struct Patch {
  static constexpr PatchLimits kLimits = forward_nchw_patch(kFilter);
  static constexpr int kTileH = kLimits.rows, kTileW = kLimits.columns;
  static constexpr int kThreads = kLimits.threads;
  static constexpr int kRows = (kTileH - 1) * kStride + kFilter;  // of x
  static constexpr int kColumns = (kTileW - 1) * kStride + kFilter;
  // Padding of at most this much leaves columns outside the image only among the first and the last kEdge.
  static constexpr int kEdge = (kFilter - 1) / 2;
};

/// A thread's part of a block's work.
template <class T>
struct Task {
  const T* x;       // [rows_of_x][W], of which the first is row x_row of the image
  const T* filter;  // [R][S]
  float* y;         // [rows of the band][Q], at the patch's first output
  float bias;
  int x_row;
  int top, left;           // where the patch's first window begins in the image
  int rows, first_column;  // outputs to store: rows of the patch, columns from first_column on
};

/// Any padding and dilation.
template <class T>
__device__ __forceinline__ void compute_any(const ConvParams& params, const Task<T>& task, int columns, bool turned) {
  const int H = static_cast<int>(params.H), W = static_cast<int>(params.W), Q = static_cast<int>(params.Q);
  const int R = static_cast<int>(params.R), S = static_cast<int>(params.S);
  const int stride = static_cast<int>(params.stride_h);
  const int dilation_h = static_cast<int>(params.dilation_h), dilation_w = static_cast<int>(params.dilation_w);
#pragma unroll 1
  for (int p = 0; p < task.rows; ++p) {
#pragma unroll 1
    for (int q = task.first_column; q < columns; ++q) {
      float sum = task.bias;
#pragma unroll 1
      for (int r = 0; r < R; ++r) {
        const int h = task.top + p * stride + r * dilation_h;
        if (h < 0 || h >= H) continue;
#pragma unroll 1
        for (int s = 0; s < S; ++s) {
          const int column = task.left + q * stride + s * dilation_w;
          if (column < 0 || column >= W) continue;
          const int tap = r * S + s;
          sum += to_accumulator(task.x[(h - task.x_row) * W + column]) *
                 to_accumulator(task.filter[turned ? R * S - 1 - tap : tap]);
        }
      }
      task.y[p * Q + q] = sum;
    }
  }
}

/// The patch, where only the edges that Patch::kEdge allows are outside the image.
template <int kFilter, int kStride, class T>
__device__ __forceinline__ void compute_patch(const ConvParams& params, const Task<T>& task, bool turned) {
  using P = Patch<kFilter, kStride>;
  const int H = static_cast<int>(params.H), W = static_cast<int>(params.W), Q = static_cast<int>(params.Q);

  constexpr int kArea = kFilter * kFilter;
  float filter[kFilter][kFilter];
#pragma unroll
  for (int tap = 0; tap < kArea; ++tap) {
    filter[tap / kFilter][tap % kFilter] = to_accumulator(task.filter[turned ? kArea - 1 - tap : tap]);
  }

  float sums[P::kTileH][P::kTileW];
#pragma unroll
  for (int p = 0; p < P::kTileH; ++p) {
#pragma unroll
    for (int q = 0; q < P::kTileW; ++q) sums[p][q] = task.bias;
  }

  int row = (task.top - task.x_row) * W + task.left;
#pragma unroll
  for (int i = 0; i < P::kRows; ++i, row += W) {
    if (static_cast<unsigned>(task.top + i) < static_cast<unsigned>(H)) {
      float values[P::kColumns];
#pragma unroll
      for (int c = 0; c < P::kColumns; ++c) {
        bool inside = true;
        if (c < P::kEdge) inside = task.left + c >= 0;
        if (c >= P::kColumns - P::kEdge) inside = task.left + c < W;
        values[c] = inside ? to_accumulator(task.x[row + c]) : 0.0f;
      }
#pragma unroll
      for (int r = 0; r < kFilter; ++r) {
        if (i < r || (i - r) % kStride != 0 || (i - r) / kStride >= P::kTileH) continue;
        const int p = (i - r) / kStride;
#pragma unroll
        for (int q = 0; q < P::kTileW; ++q) {
#pragma unroll
          for (int s = 0; s < kFilter; ++s) sums[p][q] += values[q * kStride + s] * filter[r][s];
        }
      }
    }
    const int last_tap = i - (kFilter - 1);  // of a window that this row completes
    if (last_tap >= 0 && last_tap % kStride == 0) {
      const int p = last_tap / kStride;
      if (task.first_column == 0) {
#pragma unroll
        for (int q = 0; q < P::kTileW; ++q) task.y[p * Q + q] = sums[p][q];
      } else {
#pragma unroll
        for (int q = 1; q < P::kTileW; ++q) {
          if (q >= task.first_column) task.y[p * Q + q] = sums[p][q];
        }
      }
      if (p + 1 == task.rows) return;
    }
  }
}

template <class T, int kFilter, int kStride>
__global__ void __launch_bounds__(Patch<kFilter, kStride>::kThreads, kMinWarps * 32 / Patch<kFilter, kStride>::kThreads)
    depthwise_forward_nchw_kernel(ConvParams params, TileNchw tile, bool turned, const T* __restrict__ x,
                                  const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y) {
  using Patch = Patch<kFilter, kStride>;
  CNNEXT_DYNAMIC_SHARED(unsigned char, smem);

  // The block's outputs: `planes` planes from k on in image n, rows p to p + rows - 1.
  const BlockNchw block = block_nchw(tile);
  const int k = block.group * tile.planes;
  const int64_t n = block.image;
  const int planes = min(tile.planes, static_cast<int>(params.K) - k);
  const int p = block.band * tile.band_rows;
  const int rows = min(tile.band_rows, static_cast<int>(params.P) - p);
  const PlaneRows<T> y_rows{y + n * params.y_strides.n + k * params.y_strides.c + p * params.y_strides.h,
                            params.y_strides.c,
                            params.y_strides.h,
                            planes,
                            rows,
                            static_cast<int>(params.Q),
                            tile.dense_output};

  // Their inputs: whole planes, or those rows of one that exist.
  const int H = static_cast<int>(params.H), pad_h = static_cast<int>(params.pad_h);
  const auto input_plane = [&](int plane) { return tile.multiplier == 1 ? plane : plane / tile.multiplier; };
  const int c = input_plane(k);
  const int window = (kFilter - 1) * static_cast<int>(params.dilation_h) + 1;
  const int h = tile.bands == 1 ? 0 : min(max(p * kStride - pad_h, 0), H);
  const int h_end = tile.bands == 1 ? H : max(h, min((p + rows - 1) * kStride - pad_h + window, H));
  const PlaneRows<const T> x_rows{x + n * params.x_strides.n + c * params.x_strides.c + h * params.x_strides.h,
                                  params.x_strides.c,
                                  params.x_strides.h,
                                  input_plane(k + planes - 1) - c + 1,
                                  h_end - h,
                                  static_cast<int>(params.W),
                                  tile.dense_input};

  constexpr int kArea = kFilter * kFilter;
  const T* smem_x = copy_in<Patch::kThreads>(reinterpret_cast<T*>(smem), x_rows);
  const T* smem_w = copy_in<Patch::kThreads>(reinterpret_cast<T*>(smem + tile.filter_offset),
                                             {w + int64_t{k} * kArea, kArea, kArea, 1, 1, planes * kArea, true});
  float* smem_y = place_of_output(reinterpret_cast<float*>(smem + tile.output_offset), y_rows);
  copy_async_commit();

  copy_async_wait<0>();
  __syncthreads();

  const int Q = static_cast<int>(params.Q), pad_w = static_cast<int>(params.pad_w);
  const bool plain = params.dilation_h == 1 && params.dilation_w == 1 && pad_w <= Patch::kEdge && Q >= Patch::kTileW;
  for (int i = threadIdx.x; i < planes * tile.patches; i += Patch::kThreads) {
    const PatchNchw patch = patch_nchw(tile, i);
    const int first_row = patch.below * tile.patch_rows;  // in the band
    if (first_row >= rows) continue;
    const int own_column = patch.strip * Patch::kTileW;
    const int q = max(min(own_column, Q - Patch::kTileW), 0);
    Task<T> task;
    task.x = smem_x + (input_plane(k + patch.plane) - c) * x_rows.rows * x_rows.columns;
    task.filter = smem_w + patch.plane * kArea;
    task.y = smem_y + (patch.plane * rows + first_row) * Q + q;
    task.bias = bias == nullptr ? 0.0f : to_accumulator(bias[k + patch.plane]);
    task.x_row = h;
    task.top = (p + first_row) * kStride - pad_h;
    task.left = q * kStride - pad_w;
    task.rows = min(tile.patch_rows, rows - first_row);
    task.first_column = own_column - q;

    if (plain) {
      compute_patch<kFilter, kStride>(params, task, turned);
    } else {
      compute_any(params, task, min(Q, Patch::kTileW), turned);
    }
  }
  __syncthreads();
  copy_out<Patch::kThreads>(y_rows, smem_y, params.activation);
}

template <class T, int kFilter, int kStride>
void run(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w, const void* bias, void* y,
         bool turned, Stream stream) {
  launch(depthwise_forward_nchw_kernel<T, kFilter, kStride>, dim3(static_cast<unsigned>(config.grid[0])),
         dim3(config.block[0]), config.shared_bytes, stream, params, forward_nchw_tile(params, config), turned,
         static_cast<const T*>(x), static_cast<const T*>(w), static_cast<const T*>(bias), static_cast<T*>(y));
}

/// Calls body with the stride and the filter as constants; the planner lets no others pass.
template <class Body>
void dispatch(int64_t filter, int64_t stride, const Body& body) {
  const auto with_stride = [&](auto size) {
    return stride == 1 ? body(size, std::integral_constant<int, 1>()) : body(size, std::integral_constant<int, 2>());
  };
  switch (filter) {
    case 3: return with_stride(std::integral_constant<int, 3>());
    case 5: return with_stride(std::integral_constant<int, 5>());
    default: return with_stride(std::integral_constant<int, 7>());
  }
}

}  // namespace

void depthwise_forward_nchw_turned(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                                   const void* bias, void* y, bool turned, Stream stream) {
  dispatch(params.R, params.stride_h, [&](auto filter, auto stride) {
    constexpr int kFilter = decltype(filter)::value, kStride = decltype(stride)::value;
    switch (params.dtype) {
      case DType::kFloat16: return run<__half, kFilter, kStride>(params, config, x, w, bias, y, turned, stream);
      case DType::kBFloat16: return run<__nv_bfloat16, kFilter, kStride>(params, config, x, w, bias, y, turned, stream);
      default: return run<float, kFilter, kStride>(params, config, x, w, bias, y, turned, stream);
    }
  });
}

void depthwise_forward_nchw(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                            const void* bias, void* y, Stream stream) {
  depthwise_forward_nchw_turned(params, config, x, w, bias, y, false, stream);
}

}  // namespace cnnext::cuda
