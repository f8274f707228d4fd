// The residual of a separable block behind kernels that cannot add it themselves, for any problem.
//
//   y[n, k, p, q] = activation(y[n, k, p, q] + residual[n, k, p, q])
//
// A thread owns one element at a time, neighbouring threads neighbouring elements in memory. The sum that it adds to
// has been rounded to the dtype already.
#include "grouped_general.cuh"
#include "separable.h"

namespace cnnext::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256)
    separable_residual_kernel(ConvParams params, const T* __restrict__ residual, T* __restrict__ y) {
  using A = typename AccumulatorOf<T>::type;
  const int64_t elements = params.N * params.K * params.P * params.Q;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements; i += threads) {
    const Element e = element_at(i, params.layout, params.K, params.P, params.Q);
    const Strides4& strides = params.y_strides;
    const int64_t at = e.n * strides.n + e.channel * strides.c + e.row * strides.h + e.column * strides.w;
    const A sum = to_accumulator(y[at]) + to_accumulator(residual[at]);
    round_to(y[at], activate(sum, params.activation));
  }
}

}  // namespace

void add_residual(const ConvParams& params, const void* residual, void* y, Stream stream) {
  const int64_t elements = params.N * params.K * params.P * params.Q;
  const LaunchConfig config = thread_per_element(Kernel::kSeparableNhwc, elements);
  dispatch_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    launch(separable_residual_kernel<T>, dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0]), 0, stream,
           params, static_cast<const T*>(residual), static_cast<T*>(y));
  });
}

}  // namespace cnnext::cuda
