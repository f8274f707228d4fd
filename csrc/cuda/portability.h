// What a kernel file may use beyond plain CUDA C++, so that the same text is compiled by nvcc for a GPU and by g++ for
// the tests. Under nvcc each name is the one construct it stands for; under g++ tests/emulator/emulator.h defines it.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace cnnext::cuda {

/// Launches `kernel` on `stream`; stands for kernel<<<grid, block, 0, stream>>>(args...).
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, const Args&... args) {
  kernel<<<grid, block, 0, stream>>>(static_cast<Params>(args)...);
}

}  // namespace cnnext::cuda

#else
#include "emulator.h"
#endif
