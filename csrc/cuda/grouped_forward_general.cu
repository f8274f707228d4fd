// Grouped convolution, forward, for any problem.
//
//   y[n, k, p, q] = activation(bias[k] + sum over c, r, s of x[n, c, p * stride_h - pad_h + r * dilation_h,
//                                                              q * stride_w - pad_w + s * dilation_w] * w[k, c, r, s])
//
// with c over the channels of k's group and x = 0 outside the image. A thread owns one output at a time; neighbouring
// threads own neighbouring outputs in memory. Every dtype, filter, stride, dilation, layout and set of strides runs
// here; x is read again for every output channel, so this is the kernel of last resort and bound by the caches.
#include "grouped_general.cuh"

namespace cnnext::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256, 2)
    grouped_forward_general_kernel(ConvParams params, FilterStrides strides, const T* __restrict__ x,
                                   const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y) {
  using A = typename AccumulatorOf<T>::type;
  const int64_t outputs = params.N * params.K * params.P * params.Q;
  const int64_t channels = params.C / params.groups, group_outputs = params.K / params.groups;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < outputs; index += threads) {
    const Element e = element_at(index, params.layout, params.K, params.P, params.Q);
    const T* image = x + e.n * params.x_strides.n + e.channel / group_outputs * channels * params.x_strides.c;
    const T* filter = w + e.channel * strides.k;
    A sum = bias == nullptr ? A(0) : to_accumulator(bias[e.channel]);
    for (int64_t r = 0; r < params.R; ++r) {
      const int64_t h = e.row * params.stride_h - params.pad_h + r * params.dilation_h;
      if (h < 0 || h >= params.H) continue;
      for (int64_t s = 0; s < params.S; ++s) {
        const int64_t column = e.column * params.stride_w - params.pad_w + s * params.dilation_w;
        if (column < 0 || column >= params.W) continue;
        const T* pixel = image + h * params.x_strides.h + column * params.x_strides.w;
        const T* tap = filter + r * strides.r + s * strides.s;
        for (int64_t c = 0; c < channels; ++c) {
          sum += to_accumulator(pixel[c * params.x_strides.c]) * to_accumulator(tap[c * strides.c]);
        }
      }
    }
    round_to(y[e.n * params.y_strides.n + e.channel * params.y_strides.c + e.row * params.y_strides.h +
               e.column * params.y_strides.w],
             activate(sum, params.activation));
  }
}

}  // namespace

void grouped_forward_general(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                             const void* x, const void* w, const void* bias, void* y, Stream stream) {
  dispatch_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    launch(grouped_forward_general_kernel<T>, dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0]), 0,
           stream, params, filter_strides(params, filter_channels_last), static_cast<const T*>(x),
           static_cast<const T*>(w), static_cast<const T*>(bias), static_cast<T*>(y));
  });
}

}  // namespace cnnext::cuda
