// Depthwise convolution, gradient with respect to the filter and the bias, for any problem; the first of two stages.
//
//   dw[k, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, k / m, p * stride_h - pad_h + r * dilation_h,
//                                                        q * stride_w - pad_w + s * dilation_w]
//   dbias[k]    = sum over n, p, q of dy[n, k, p, q],   m = K / C the channel multiplier, x = 0 outside the image
//
// (An infinite dy at the border gives NaN, infinity times the padding's zero, as ATen's convolution does.)
//
// A block owns one part of the pixels (n, p, q), one tap (r, s), or the sums of dy as the tap after the last, and
// config.tile_w channels: one in NCHW, 32 in NHWC, so that neighbouring threads read neighbouring elements of memory. A
// thread owns one of these channels and every so manyeth pixel; the block's sums meet in shared memory in a fixed order
// and go to the workspace [part][R * S + 1][K], which depthwise_backward_weight_reduce adds up.
//
// Every filter size, stride, dilation, multiplier, dtype and set of strides runs here. x and dy are read once a tap, so
// this is the kernel of last resort and bound by the caches.
#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;

/// A pixel of dy, and the way to one that lies a fixed number of pixels further on without a division.
struct PixelWalk {
  int64_t n, p, q;
  int64_t step_n, step_p, step_q;
  int64_t P, Q;

  __device__ PixelWalk(const ConvParams& params, int64_t pixel, int64_t step)
      : n(pixel / (params.P * params.Q)),
        p(pixel / params.Q % params.P),
        q(pixel % params.Q),
        step_n(step / (params.P * params.Q)),
        step_p(step / params.Q % params.P),
        step_q(step % params.Q),
        P(params.P),
        Q(params.Q) {}

  __device__ void advance() {
    q += step_q, p += step_p, n += step_n;
    if (q >= Q) q -= Q, ++p;
    if (p >= P) p -= P, ++n;
  }
};

/// The sum over the pixels `begin`, `begin` + `step`, ... before `end` for one channel and tap; `tap` = R * S is dy's.
template <class T, class A>
__device__ A sum_of_pixels(const ConvParams& params, const T* dy, const T* x, int64_t k, int64_t tap, int64_t begin,
                           int64_t end, int64_t step) {
  const bool of_dy = tap == params.R * params.S;
  const int64_t row_offset = tap / params.S * params.dilation_h - params.pad_h;
  const int64_t column_offset = tap % params.S * params.dilation_w - params.pad_w;
  const T* const dy_channel = dy + k * params.y_strides.c;
  const T* const x_channel = x + k / (params.K / params.C) * params.x_strides.c;
  A sum = A(0);
  PixelWalk at(params, begin, step);
  for (int64_t pixel = begin; pixel < end; pixel += step, at.advance()) {
    const T* const dy_element =
        dy_channel + at.n * params.y_strides.n + at.p * params.y_strides.h + at.q * params.y_strides.w;
    if (of_dy) {
      sum += to_accumulator(*dy_element);
      continue;
    }
    const int64_t h = at.p * params.stride_h + row_offset;
    const int64_t w = at.q * params.stride_w + column_offset;
    const bool inside = h >= 0 && h < params.H && w >= 0 && w < params.W;
    const A x_value =
        inside ? to_accumulator(x_channel[at.n * params.x_strides.n + h * params.x_strides.h + w * params.x_strides.w])
               : A(0);
    sum += to_accumulator(*dy_element) * x_value;
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    depthwise_backward_weight_general_kernel(ConvParams params, int64_t blocks, int64_t channel_blocks, int channels,
                                             int64_t part_size, bool with_bias, const T* __restrict__ dy,
                                             const T* __restrict__ x,
                                             typename AccumulatorOf<T>::type* __restrict__ workspace) {
  using A = typename AccumulatorOf<T>::type;
  CNNEXT_STATIC_SHARED(A, smem_sums, kThreads);
  const int64_t taps = params.R * params.S + 1;
  const int64_t pixels = params.N * params.P * params.Q;
  const int thread = threadIdx.x;

  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t k = block % channel_blocks * channels + thread % channels;
    const int64_t tap = block / channel_blocks % taps;
    const int64_t part = block / channel_blocks / taps;
    if (tap == taps - 1 && !with_bias) continue;

    const int64_t end = min((part + 1) * part_size, pixels);
    smem_sums[thread] = k < params.K ? sum_of_pixels<T, A>(params, dy, x, k, tap, part * part_size + thread / channels,
                                                           end, kThreads / channels)
                                     : A(0);
    __syncthreads();
    for (int half = kThreads / 2; half >= channels; half /= 2) {
      if (thread < half) smem_sums[thread] += smem_sums[thread + half];
      __syncthreads();
    }
    if (thread < channels && k < params.K) workspace[(part * taps + tap) * params.K + k] = smem_sums[thread];
    __syncthreads();
  }
}

template <class T>
void run(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x, void* dw, void* dbias,
         void* workspace, Stream stream) {
  using A = typename AccumulatorOf<T>::type;
  const int64_t channel_blocks = ceil_div(params.K, config.tile_w);
  const int64_t blocks = channel_blocks * (params.R * params.S + 1) * config.parts;
  const int64_t part_size = ceil_div(params.N * params.P * params.Q, config.parts);
  launch(depthwise_backward_weight_general_kernel<T>, dim3(static_cast<unsigned>(config.grid[0])), dim3(kThreads), 0,
         stream, params, blocks, channel_blocks, config.tile_w, part_size, dbias != nullptr, static_cast<const T*>(dy),
         static_cast<const T*>(x), static_cast<A*>(workspace));
  depthwise_backward_weight_reduce(params, config.parts, workspace, dw, dbias, stream);
}

}  // namespace

void depthwise_backward_weight_general(const ConvParams& params, const LaunchConfig& config, const void* dy,
                                       const void* x, void* dw, void* dbias, void* workspace, Stream stream) {
  switch (params.dtype) {
    case DType::kFloat32: return run<float>(params, config, dy, x, dw, dbias, workspace, stream);
    case DType::kFloat64: return run<double>(params, config, dy, x, dw, dbias, workspace, stream);
    case DType::kFloat16: return run<__half>(params, config, dy, x, dw, dbias, workspace, stream);
    case DType::kBFloat16: return run<__nv_bfloat16>(params, config, dy, x, dw, dbias, workspace, stream);
  }
}

}  // namespace cnnext::cuda
