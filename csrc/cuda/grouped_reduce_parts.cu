// Grouped convolution, forward and input gradient, the second stage where the reduced dimension is split in parts:
//
//   y[n, h, w, k] = activation(bias[k] + sum over parts of sums[part][n][h][w][k])
//
// A thread owns one 16-byte vector of channels of one pixel, neighbouring threads neighbouring vectors, and adds the
// parts in ascending order, so results are the same in every run. The outputs are few wherever there is such a split;
// their sums come from the L2 cache.
//
// Assumes: channels_last, output 16-byte aligned, as are its strides and the channels in memory.
#include "implicit_gemm_epilogue.cuh"
#include "kernels.h"
#include "launch_config.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    grouped_reduce_parts_kernel(Activations y, int channels, int parts, const float* __restrict__ sums,
                                const T* __restrict__ bias, Activation activation, T* __restrict__ output) {
  const int64_t elements = y.N * y.H * y.W * channels;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector<T>;
  if (first >= elements) return;
  const int64_t pixel = first / channels;
  const int channel = static_cast<int>(first - pixel * channels);

  float values[kVector<T>] = {};
#pragma unroll 4
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int i = 0; i < kVector<T>; i += 4) {
      const float4 more = load_global<float4>(sums + part * elements + first + i);
      values[i] += more.x, values[i + 1] += more.y, values[i + 2] += more.z, values[i + 3] += more.w;
    }
  }
  float biases[kVector<T>] = {};
  load_bias(bias + channel, bias != nullptr ? static_cast<int>(y.C) - channel : 0, biases);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) values[i] += biases[i];
  activate_all(values, activation);
  const int64_t w = pixel % y.W, h = pixel / y.W % y.H, n = pixel / y.W / y.H;
  store(output + n * y.strides.n + h * y.strides.h + w * y.strides.w + channel, pack<T>(values));
}

}  // namespace

void grouped_reduce_parts(DType dtype, const Activations& y, int channels, int parts, const float* sums,
                          const void* bias, Activation activation, void* output, Stream stream) {
  const auto run = [&](auto element) {
    using T = decltype(element);
    const dim3 grid(static_cast<unsigned>(ceil_div(y.N * y.H * y.W * channels / kVector<T>, kThreads)));
    launch(grouped_reduce_parts_kernel<T>, grid, dim3(kThreads), 0, stream, y, channels, parts, sums,
           static_cast<const T*>(bias), activation, static_cast<T*>(output));
  };
  if (dtype == DType::kFloat16) return run(__half());
  if (dtype == DType::kBFloat16) return run(__nv_bfloat16());
  run(float());
}

}  // namespace cnnext::cuda
