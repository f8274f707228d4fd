// Grouped convolution, gradient with respect to the filter and the bias, for any problem.
//
//   dw[k, c, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, c, p * stride_h - pad_h + r * dilation_h,
//                                                              q * stride_w - pad_w + s * dilation_w]
//   dbias[k]       = sum over n, p, q of dy[n, k, p, q],   c over the channels of k's group, x = 0 outside the image
//
// A block owns one output channel and one tap (r, s), or the sum of dy as the tap after the last, and config.tile_w
// channels c: one in NCHW, up to 32 in NHWC, so that neighbouring threads read neighbouring elements of memory. A
// thread owns one of these channels and every so manyeth pixel; the block's sums meet in shared memory in a fixed
// order. The kernel of last resort: it has no second stage, and reads x again for every output channel and tap.
#include "grouped_general.cuh"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    grouped_backward_weight_general_kernel(ConvParams params, FilterStrides strides, int lanes, int64_t blocks,
                                           const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dw,
                                           T* __restrict__ dbias) {
  using A = typename AccumulatorOf<T>::type;
  CNNEXT_STATIC_SHARED(A, smem_sums, kThreads);
  const int64_t channels = params.C / params.groups, group_outputs = params.K / params.groups;
  const int64_t channel_blocks = (channels + lanes - 1) / lanes;
  const int64_t taps = params.R * params.S;
  const int64_t pixels = params.N * params.P * params.Q;
  const int thread = threadIdx.x;

  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t c = block % channel_blocks * lanes + thread % lanes;
    const int64_t tap = block / channel_blocks % (taps + 1);
    const int64_t k = block / channel_blocks / (taps + 1);
    const bool of_dy = tap == taps;
    if (of_dy && (dbias == nullptr || block % channel_blocks != 0)) continue;

    const T* dy_plane = dy + k * params.y_strides.c;
    const T* x_plane = x + (k / group_outputs * channels + c) * params.x_strides.c;
    const int64_t row_offset = tap / params.S * params.dilation_h - params.pad_h;
    const int64_t column_offset = tap % params.S * params.dilation_w - params.pad_w;
    A sum = A(0);
    for (int64_t pixel = thread / lanes; pixel < pixels && c < channels; pixel += kThreads / lanes) {
      const int64_t q = pixel % params.Q, p = pixel / params.Q % params.P, n = pixel / params.Q / params.P;
      const A gradient =
          to_accumulator(dy_plane[n * params.y_strides.n + p * params.y_strides.h + q * params.y_strides.w]);
      if (of_dy) {
        sum += gradient;
        continue;
      }
      const int64_t h = p * params.stride_h + row_offset, w = q * params.stride_w + column_offset;
      // Padding is a zero in the products, as in ATen: a NaN in dy is seen by every tap.
      const bool inside = h >= 0 && h < params.H && w >= 0 && w < params.W;
      sum += gradient *
             (inside ? to_accumulator(x_plane[n * params.x_strides.n + h * params.x_strides.h + w * params.x_strides.w])
                     : A(0));
    }
    smem_sums[thread] = sum;
    __syncthreads();
    for (int half = kThreads / 2; half >= lanes; half /= 2) {
      if (thread < half) smem_sums[thread] += smem_sums[thread + half];
      __syncthreads();
    }
    if (of_dy) {
      if (thread == 0) round_to(dbias[k], smem_sums[0]);
    } else if (thread < lanes && c < channels) {
      round_to(dw[k * strides.k + c * strides.c + tap / params.S * strides.r + tap % params.S * strides.s],
               smem_sums[thread]);
    }
    __syncthreads();
  }
}

}  // namespace

void grouped_backward_weight_general(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                                     const void* dy, const void* x, void* dw, void* dbias, Stream stream) {
  const int64_t channel_blocks = ceil_div(params.channels_per_group(), config.tile_w);
  const int64_t blocks = params.K * (params.R * params.S + 1) * channel_blocks;
  dispatch_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    launch(grouped_backward_weight_general_kernel<T>, dim3(static_cast<unsigned>(config.grid[0])), dim3(kThreads), 0,
           stream, params, filter_strides(params, filter_channels_last), config.tile_w, blocks,
           static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw), static_cast<T*>(dbias));
  });
}

}  // namespace cnnext::cuda
