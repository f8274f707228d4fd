// CUDA on the CPU, for kernels whose threads do not talk to each other: no shared memory, barriers or warp collectives.
//
// Included by csrc/cuda/portability.h when the compiler is not nvcc. The types and conversions of half and bfloat16
// come from CUDA's own headers, which compile as plain C++. A launch runs every thread of the grid to its end, one
// after the other.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstdint>

// A kernel's parameters and launch bounds mean nothing here.
#undef __global__
#define __global__
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace cnnext::emulator {

struct Position {
  dim3 grid, block;
  uint3 block_index, thread_index;
};

/// Where the thread that runs now stands.
inline Position current;

}  // namespace cnnext::emulator

#define gridDim cnnext::emulator::current.grid
#define blockDim cnnext::emulator::current.block
#define blockIdx cnnext::emulator::current.block_index
#define threadIdx cnnext::emulator::current.thread_index

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace cnnext::cuda {

// What device code finds in the global namespace.
using std::exp;
using std::log1p;
using std::tanh;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t, const Args&... args) {
  emulator::current = {grid, block, {}, {}};
  auto& [b_x, b_y, b_z] = emulator::current.block_index;
  auto& [t_x, t_y, t_z] = emulator::current.thread_index;
  for (b_z = 0; b_z < grid.z; ++b_z)
    for (b_y = 0; b_y < grid.y; ++b_y)
      for (b_x = 0; b_x < grid.x; ++b_x)
        for (t_z = 0; t_z < block.z; ++t_z)
          for (t_y = 0; t_y < block.y; ++t_y)
            for (t_x = 0; t_x < block.x; ++t_x) kernel(static_cast<Params>(args)...);
}

}  // namespace cnnext::cuda
