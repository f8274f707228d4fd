// The filter of a grouped convolution on its way between the order of the operators, [K][C / groups][R][S], and that of
// the channels_last kernels, [K][R][S][C / groups]; and the second stage of the weight gradient, which ends with it.
//
// A thread owns one element of what is written (of what is read in the second stage). A filter is small beside the
// activations, and both kernels fit the L2 cache.
#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    grouped_pack_filter_kernel(int64_t elements, int channels, int taps, const T* __restrict__ w,
                               T* __restrict__ packed) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= elements) return;
  const int64_t k_and_tap = index / channels;
  const int channel = static_cast<int>(index - k_and_tap * channels);
  const int64_t k = k_and_tap / taps;
  const int tap = static_cast<int>(k_and_tap - k * taps);
  packed[index] = w[(k * channels + channel) * taps + tap];
}

/// Elements past `elements` are those of the bias.
template <class T>
__global__ void __launch_bounds__(kThreads)
    grouped_backward_weight_reduce_kernel(int64_t elements, int64_t K, int rows, int channels, int taps, int parts,
                                          bool filter_channels_last, const float* __restrict__ sums, T* __restrict__ dw,
                                          T* __restrict__ dbias) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= elements + K) return;
  const bool is_bias = index >= elements;
  if (is_bias && dbias == nullptr) return;
  const float* from = is_bias ? sums + parts * elements + (index - elements) : sums + index;
  float sum = 0;
  for (int part = 0; part < parts; ++part) sum += from[part * (is_bias ? K : elements)];
  if (is_bias) {
    round_to(dbias[index - elements], sum);
    return;
  }
  // index = ((group * taps + tap) * rows + row) * channels + channel
  int64_t rest = index / channels;
  const int channel = static_cast<int>(index - rest * channels);
  const int row = static_cast<int>(rest % rows);
  rest /= rows;
  const int tap = static_cast<int>(rest % taps);
  const int64_t k = rest / taps * rows + row;
  round_to(dw[filter_channels_last ? (k * taps + tap) * channels + channel : (k * channels + channel) * taps + tap],
           sum);
}

template <class T>
void pack(const ConvParams& p, const void* w, void* packed, Stream stream) {
  const int64_t elements = p.K * p.channels_per_group() * p.R * p.S;
  launch(grouped_pack_filter_kernel<T>, dim3(static_cast<unsigned>(ceil_div(elements, kThreads))), dim3(kThreads), 0,
         stream, elements, static_cast<int>(p.channels_per_group()), static_cast<int>(p.R * p.S),
         static_cast<const T*>(w), static_cast<T*>(packed));
}

template <class T>
void reduce(const ConvParams& p, int parts, bool filter_channels_last, const float* sums, void* dw, void* dbias,
            Stream stream) {
  const int64_t elements = p.K * p.channels_per_group() * p.R * p.S;
  launch(grouped_backward_weight_reduce_kernel<T>, dim3(static_cast<unsigned>(ceil_div(elements + p.K, kThreads))),
         dim3(kThreads), 0, stream, elements, p.K, static_cast<int>(p.outputs_per_group()),
         static_cast<int>(p.channels_per_group()), static_cast<int>(p.R * p.S), parts, filter_channels_last, sums,
         static_cast<T*>(dw), static_cast<T*>(dbias));
}

}  // namespace

void grouped_pack_filter(const ConvParams& params, const void* w, void* packed, Stream stream) {
  switch (params.dtype) {
    case DType::kFloat16: return pack<__half>(params, w, packed, stream);
    case DType::kBFloat16: return pack<__nv_bfloat16>(params, w, packed, stream);
    default: return pack<float>(params, w, packed, stream);
  }
}

void grouped_backward_weight_reduce(const ConvParams& params, int parts, bool filter_channels_last,
                                    const float* workspace, void* dw, void* dbias, Stream stream) {
  switch (params.dtype) {
    case DType::kFloat16: return reduce<__half>(params, parts, filter_channels_last, workspace, dw, dbias, stream);
    case DType::kBFloat16:
      return reduce<__nv_bfloat16>(params, parts, filter_channels_last, workspace, dw, dbias, stream);
    default: return reduce<float>(params, parts, filter_channels_last, workspace, dw, dbias, stream);
  }
}

}  // namespace cnnext::cuda
