// Depthwise convolution, forward, for any problem.
//
//   y[n, k, p, q] = activation(bias[k] + sum over r, s of
//                              x[n, k / m, p * stride_h - pad_h + r * dilation_h,
//                                          q * stride_w - pad_w + s * dilation_w]
//                              * w[k, r, s]),   m = K / C the channel multiplier, x = 0 outside the image
//
// A thread owns one output at a time. Neighbouring threads own neighbouring elements of y in memory (q in NCHW, k in
// NHWC), so loads of x and stores of y are coalesced in both layouts. Every filter size, stride, dilation, dtype and
// set of strides runs here; there is no reuse of x beyond the cache, so this is the kernel of last resort and not bound
// by memory: it issues one load of x a tap.
#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256)
    depthwise_forward_general_kernel(ConvParams params, const T* __restrict__ x, const T* __restrict__ w,
                                     const T* __restrict__ bias, T* __restrict__ y) {
  using A = typename AccumulatorOf<T>::type;
  const int64_t outputs = params.N * params.K * params.P * params.Q;
  const int64_t multiplier = params.K / params.C;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < outputs; index += threads) {
    // Innermost dimension of memory first.
    int64_t rest = index, n, k, p, q;
    if (params.layout == Layout::kNHWC) {
      k = rest % params.K, rest /= params.K;
      q = rest % params.Q, rest /= params.Q;
      p = rest % params.P, n = rest / params.P;
    } else {
      q = rest % params.Q, rest /= params.Q;
      p = rest % params.P, rest /= params.P;
      k = rest % params.K, n = rest / params.K;
    }

    const T* x_plane = x + n * params.x_strides.n + k / multiplier * params.x_strides.c;
    const T* filter = w + k * params.R * params.S;  // [R][S]
    A sum = bias == nullptr ? A(0) : to_accumulator(bias[k]);
    for (int64_t r = 0; r < params.R; ++r) {
      const int64_t h = p * params.stride_h - params.pad_h + r * params.dilation_h;
      if (h < 0 || h >= params.H) continue;
      for (int64_t s = 0; s < params.S; ++s) {
        const int64_t column = q * params.stride_w - params.pad_w + s * params.dilation_w;
        if (column < 0 || column >= params.W) continue;
        sum += to_accumulator(x_plane[h * params.x_strides.h + column * params.x_strides.w]) *
               to_accumulator(filter[r * params.S + s]);
      }
    }
    round_to(y[n * params.y_strides.n + k * params.y_strides.c + p * params.y_strides.h + q * params.y_strides.w],
             activate(sum, params.activation));
  }
}

template <class T>
void run(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w, const void* bias, void* y,
         Stream stream) {
  launch(depthwise_forward_general_kernel<T>, dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0]), 0,
         stream, params, static_cast<const T*>(x), static_cast<const T*>(w), static_cast<const T*>(bias),
         static_cast<T*>(y));
}

}  // namespace

void depthwise_forward_general(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                               const void* bias, void* y, Stream stream) {
  switch (params.dtype) {
    case DType::kFloat32: return run<float>(params, config, x, w, bias, y, stream);
    case DType::kFloat64: return run<double>(params, config, x, w, bias, y, stream);
    case DType::kFloat16: return run<__half>(params, config, x, w, bias, y, stream);
    case DType::kBFloat16: return run<__nv_bfloat16>(params, config, x, w, bias, y, stream);
  }
}

}  // namespace cnnext::cuda
