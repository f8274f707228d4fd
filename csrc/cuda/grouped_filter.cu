// The filter of a grouped convolution on its way between the orders of the operators, [K][C / groups][R][S] or
// [K][R][S][C / groups], and that of the channels_last kernels, which is the latter, with channels of zeros at the end
// where the problem's are no whole vector; and the second stage of the weight gradient, which ends with it.
//
// A thread owns one element of the packed filter. A filter is small beside the activations, and both kernels fit the L2
// cache.
#include "grouped_general.cuh"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;

/// Where element `index` of [groups][taps][rows][channels], or of [K][taps][channels] with one group, belongs.
struct FilterShape {
  int64_t elements;  // with padding
  int taps, S;
  int channels, padded_channels;  // of a group
  FilterStrides strides;

  __device__ __forceinline__ int64_t offset(int64_t k, int tap, int channel) const {
    return k * strides.k + channel * strides.c + tap / S * strides.r + tap % S * strides.s;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    grouped_pack_filter_kernel(FilterShape shape, const T* __restrict__ w, T* __restrict__ packed) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= shape.elements) return;
  const int64_t k_and_tap = index / shape.padded_channels;
  const int channel = static_cast<int>(index - k_and_tap * shape.padded_channels);
  const int64_t k = k_and_tap / shape.taps;
  const int tap = static_cast<int>(k_and_tap - k * shape.taps);
  if (channel < shape.channels) {
    packed[index] = w[shape.offset(k, tap, channel)];
  } else {
    round_to(packed[index], 0.f);
  }
}

/// Elements past shape.elements are those of the bias.
template <class T>
__global__ void __launch_bounds__(kThreads)
    grouped_backward_weight_reduce_kernel(FilterShape shape, int64_t K, int rows, int parts,
                                          const float* __restrict__ sums, T* __restrict__ dw, T* __restrict__ dbias) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool is_bias = index >= shape.elements;
  if (is_bias ? dbias == nullptr || index >= shape.elements + K : index % shape.padded_channels >= shape.channels) {
    return;
  }
  const float* from = is_bias ? sums + parts * shape.elements + (index - shape.elements) : sums + index;
  float sum = 0;
  for (int part = 0; part < parts; ++part) sum += from[part * (is_bias ? K : shape.elements)];
  if (is_bias) {
    round_to(dbias[index - shape.elements], sum);
    return;
  }
  // index = ((group * taps + tap) * rows + row) * padded_channels + channel
  int64_t rest = index / shape.padded_channels;
  const int channel = static_cast<int>(index - rest * shape.padded_channels);
  const int row = static_cast<int>(rest % rows);
  rest /= rows;
  const int tap = static_cast<int>(rest % shape.taps);
  round_to(dw[shape.offset(rest / shape.taps * rows + row, tap, channel)], sum);
}

FilterShape shape_of(const ConvParams& p, bool filter_channels_last, int padded_channels) {
  return {p.K * p.R * p.S * padded_channels,
          static_cast<int>(p.R * p.S),
          static_cast<int>(p.S),
          static_cast<int>(p.channels_per_group()),
          padded_channels,
          filter_strides(p, filter_channels_last)};
}

dim3 blocks_for(int64_t elements) { return dim3(static_cast<unsigned>(ceil_div(elements, kThreads))); }

/// Calls f(T()) for the dtypes of the channels_last kernels.
template <class F>
void dispatch_fast_dtype(DType dtype, F f) {
  if (dtype == DType::kFloat16) return f(__half());
  if (dtype == DType::kBFloat16) return f(__nv_bfloat16());
  f(float());
}

}  // namespace

void grouped_pack_filter(const ConvParams& params, bool filter_channels_last, int padded_channels, const void* w,
                         void* packed, Stream stream) {
  const FilterShape shape = shape_of(params, filter_channels_last, padded_channels);
  dispatch_fast_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    launch(grouped_pack_filter_kernel<T>, blocks_for(shape.elements), dim3(kThreads), 0, stream, shape,
           static_cast<const T*>(w), static_cast<T*>(packed));
  });
}

void grouped_backward_weight_reduce(const ConvParams& params, int parts, int channels, bool filter_channels_last,
                                    const float* workspace, void* dw, void* dbias, Stream stream) {
  const FilterShape shape = shape_of(params, filter_channels_last, channels);
  dispatch_fast_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    launch(grouped_backward_weight_reduce_kernel<T>, blocks_for(shape.elements + params.K), dim3(kThreads), 0, stream,
           shape, params.K, static_cast<int>(params.outputs_per_group()), parts, workspace, static_cast<T*>(dw),
           static_cast<T*>(dbias));
  });
}

}  // namespace cnnext::cuda
