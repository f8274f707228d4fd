// Grouped convolution, gradient with respect to the input, for any problem.
//
//   dx[n, c, h, w] = sum over k, r, s of dy[n, k, p, q] * filter[k, c, r, s],
//                    p = (h + pad_h - r * dilation_h) / stride_h, q likewise, where these are whole and inside dy
//
// with k over the output channels of c's group. A thread owns one element of dx at a time and gathers; neighbouring
// threads own neighbouring elements in memory. The kernel of last resort, bound by the caches.
#include "grouped_general.cuh"

namespace cnnext::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256, 2)
    grouped_backward_input_general_kernel(ConvParams params, FilterStrides strides, const T* __restrict__ dy,
                                          const T* __restrict__ w, T* __restrict__ dx) {
  using A = typename AccumulatorOf<T>::type;
  const int64_t inputs = params.N * params.C * params.H * params.W;
  const int64_t channels = params.C / params.groups, group_outputs = params.K / params.groups;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; index < inputs; index += threads) {
    const Element e = element_at(index, params.layout, params.C, params.H, params.W);
    const int64_t group = e.channel / channels;
    const T* image = dy + e.n * params.y_strides.n + group * group_outputs * params.y_strides.c;
    const T* filter = w + group * group_outputs * strides.k + e.channel % channels * strides.c;
    A sum = A(0);
    for (int64_t r = 0; r < params.R; ++r) {
      const int64_t top = e.row + params.pad_h - r * params.dilation_h;
      if (top < 0 || top % params.stride_h != 0 || top / params.stride_h >= params.P) continue;
      for (int64_t s = 0; s < params.S; ++s) {
        const int64_t left = e.column + params.pad_w - s * params.dilation_w;
        if (left < 0 || left % params.stride_w != 0 || left / params.stride_w >= params.Q) continue;
        const T* pixel =
            image + top / params.stride_h * params.y_strides.h + left / params.stride_w * params.y_strides.w;
        const T* tap = filter + r * strides.r + s * strides.s;
        for (int64_t k = 0; k < group_outputs; ++k) {
          sum += to_accumulator(pixel[k * params.y_strides.c]) * to_accumulator(tap[k * strides.k]);
        }
      }
    }
    round_to(dx[e.n * params.x_strides.n + e.channel * params.x_strides.c + e.row * params.x_strides.h +
                e.column * params.x_strides.w],
             sum);
  }
}

}  // namespace

void grouped_backward_input_general(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                                    const void* dy, const void* w, void* dx, Stream stream) {
  dispatch_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    launch(grouped_backward_input_general_kernel<T>, dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0]),
           0, stream, params, filter_strides(params, filter_channels_last), static_cast<const T*>(dy),
           static_cast<const T*>(w), static_cast<T*>(dx));
  });
}

}  // namespace cnnext::cuda
