// Depthwise convolution, gradient with respect to the input, for any problem.
//
//   dx[n, c, h, w] = sum over the m = K / C outputs k = c * m + j, and r, s of
//                    dy[n, k, p, q] * filter[k, r, s],
//                    p = (h + pad_h - r * dilation_h) / stride_h, q likewise, where these are whole and inside dy
//
// A thread owns one element of dx at a time and gathers, so nothing is written twice and the order of the sum is fixed.
// Neighbouring threads own neighbouring elements of dx in memory (w in NCHW, c in NHWC), so loads of dy and stores of
// dx are coalesced in both layouts (with a stride or a multiplier, dy's as far as the geometry lets them). Every filter
// size, stride, dilation, multiplier, dtype and set of strides runs here; it is the kernel of last resort and not bound
// by memory: it issues one load of dy a tap.
#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256)
    depthwise_backward_input_general_kernel(ConvParams params, const T* __restrict__ dy, const T* __restrict__ w,
                                            T* __restrict__ dx) {
  using A = typename AccumulatorOf<T>::type;
  const int64_t inputs = params.N * params.C * params.H * params.W;
  const int64_t multiplier = params.K / params.C;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < inputs; index += threads) {
    // Innermost dimension of memory first.
    int64_t rest = index, n, c, h, column;
    if (params.layout == Layout::kNHWC) {
      c = rest % params.C, rest /= params.C;
      column = rest % params.W, rest /= params.W;
      h = rest % params.H, n = rest / params.H;
    } else {
      column = rest % params.W, rest /= params.W;
      h = rest % params.H, rest /= params.H;
      c = rest % params.C, n = rest / params.C;
    }

    const int64_t first = c * multiplier;
    const T* dy_planes = dy + n * params.y_strides.n + first * params.y_strides.c;
    const T* filters = w + first * params.R * params.S;  // [multiplier][R][S]
    A sum = A(0);
    for (int64_t r = 0; r < params.R; ++r) {
      const int64_t top = h + params.pad_h - r * params.dilation_h;
      if (top < 0 || top % params.stride_h != 0 || top / params.stride_h >= params.P) continue;
      const T* dy_row = dy_planes + top / params.stride_h * params.y_strides.h;
      for (int64_t s = 0; s < params.S; ++s) {
        const int64_t left = column + params.pad_w - s * params.dilation_w;
        if (left < 0 || left % params.stride_w != 0 || left / params.stride_w >= params.Q) continue;
        const T* dy_pixel = dy_row + left / params.stride_w * params.y_strides.w;
        for (int64_t j = 0; j < multiplier; ++j) {
          sum += to_accumulator(dy_pixel[j * params.y_strides.c]) *
                 to_accumulator(filters[(j * params.R + r) * params.S + s]);
        }
      }
    }
    round_to(dx[n * params.x_strides.n + c * params.x_strides.c + h * params.x_strides.h + column * params.x_strides.w],
             sum);
  }
}

template <class T>
void run(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w, void* dx, Stream stream) {
  launch(depthwise_backward_input_general_kernel<T>, dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0]),
         0, stream, params, static_cast<const T*>(dy), static_cast<const T*>(w), static_cast<T*>(dx));
}

}  // namespace

void depthwise_backward_input_general(const ConvParams& params, const LaunchConfig& config, const void* dy,
                                      const void* w, void* dx, Stream stream) {
  switch (params.dtype) {
    case DType::kFloat32: return run<float>(params, config, dy, w, dx, stream);
    case DType::kFloat64: return run<double>(params, config, dy, w, dx, stream);
    case DType::kFloat16: return run<__half>(params, config, dy, w, dx, stream);
    case DType::kBFloat16: return run<__nv_bfloat16>(params, config, dy, w, dx, stream);
  }
}

}  // namespace cnnext::cuda
