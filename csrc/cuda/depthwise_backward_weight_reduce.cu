// Depthwise convolution, gradient with respect to the filter and the bias: the second of two stages.
//
//   dw[k, tap]  = sum over part of workspace[part][tap][k],   tap < R * S
//   dbias[k]    = sum over part of workspace[part][R * S][k]
//
// The workspace, [parts][R * S + 1][K] of the accumulator's type, is what the first stage left there. A block owns one
// tap of 32 channels: a warp reads 32 neighbouring channels of one part. Each of the block's kGroups warps adds an
// unbroken range of parts in ascending order, and the first adds the warps' sums, in ascending order too; one rounding
// at the end. The workspace fits the L2 cache, so what limits this kernel is the latency of its few loads.
#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kGroups = 16;

template <class T>
__global__ void __launch_bounds__(kLanes* kGroups)
    depthwise_backward_weight_reduce_kernel(int64_t K, int64_t channel_blocks, int64_t taps, int parts,
                                            const typename AccumulatorOf<T>::type* __restrict__ workspace,
                                            T* __restrict__ dw, T* __restrict__ dbias) {
  using A = typename AccumulatorOf<T>::type;
  CNNEXT_STATIC_SHARED(A, smem_sums, kLanes * kGroups);
  const int64_t k = blockIdx.x % channel_blocks * kLanes + threadIdx.x;
  const int64_t tap = blockIdx.x / channel_blocks;
  const int group = threadIdx.y;

  A sum = A(0);
  if (k < K) {
    const int size = (parts + kGroups - 1) / kGroups;
    const int end = min((group + 1) * size, parts);
    const A* const sums = workspace + tap * K + k;
#pragma unroll 8
    for (int part = group * size; part < end; ++part) sum += sums[part * (taps + 1) * K];
  }
  smem_sums[group * kLanes + threadIdx.x] = sum;
  __syncthreads();
  if (group != 0 || k >= K) return;
  const int groups = min(parts, kGroups);
  for (int other = 1; other < groups; ++other) sum += smem_sums[other * kLanes + threadIdx.x];
  if (tap == taps) {
    round_to(dbias[k], sum);
  } else {
    round_to(dw[k * taps + tap], sum);
  }
}

template <class T>
void run(const ConvParams& params, int parts, const void* workspace, void* dw, void* dbias, Stream stream) {
  using A = typename AccumulatorOf<T>::type;
  const int64_t taps = params.R * params.S;
  // Without a bias the blocks of the last row, the sums of dy, are left out; they may never have been written.
  const int64_t channel_blocks = ceil_div(params.K, kLanes);
  const int64_t blocks = channel_blocks * (dbias == nullptr ? taps : taps + 1);
  launch(depthwise_backward_weight_reduce_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kLanes, kGroups), 0,
         stream, params.K, channel_blocks, taps, parts, static_cast<const A*>(workspace), static_cast<T*>(dw),
         static_cast<T*>(dbias));
}

}  // namespace

void depthwise_backward_weight_reduce(const ConvParams& params, int parts, const void* workspace, void* dw, void* dbias,
                                      Stream stream) {
  switch (params.dtype) {
    case DType::kFloat32: return run<float>(params, parts, workspace, dw, dbias, stream);
    case DType::kFloat64: return run<double>(params, parts, workspace, dw, dbias, stream);
    case DType::kFloat16: return run<__half>(params, parts, workspace, dw, dbias, stream);
    case DType::kBFloat16: return run<__nv_bfloat16>(params, parts, workspace, dw, dbias, stream);
  }
}

}  // namespace cnnext::cuda
