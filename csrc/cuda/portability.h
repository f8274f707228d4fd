// What a kernel file may use beyond plain CUDA C++, so that the same text is compiled by nvcc for a GPU and by g++ for
// the tests. Under nvcc each name is the one construct or instruction it stands for; under g++ it calls the emulator
// (tests/emulator/emulator.h, docs/emulator.md).
//
// A kernel file never writes <<<>>>, __shared__, asm or a cast to a vector type itself. CUDA's own built-ins
// (threadIdx, __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync, __launch_bounds__, ...) are used as they are.
#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/// The block's dynamic shared memory, as an array of T; 128-byte aligned.
#define CNNEXT_DYNAMIC_SHARED(T, name)                                  \
  extern __shared__ __align__(128) unsigned char cnnext_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(cnnext_shared_bytes)

/// An array of `count` T in the block's static shared memory; 16-byte aligned.
#define CNNEXT_STATIC_SHARED(T, name, count) __shared__ __align__(16) T name[count]

namespace cnnext::cuda {

/// Launches `kernel` on `stream`; stands for kernel<<<grid, block, shared_bytes, stream>>>(args...).
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const Args&... args) {
  // Without this a launch with more than 48 KiB fails.
  if (shared_bytes > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
}

/// Reads a V (a built-in vector type, 2 to 16 bytes) in one access; `p` is aligned to its size.
template <class V>
__device__ __forceinline__ V load(const void* p) {
  return *static_cast<const V*>(p);
}

/// The same from global memory that nobody writes during the launch.
template <class V>
__device__ __forceinline__ V load_global(const void* p) {
  return __ldg(static_cast<const V*>(p));
}

/// Writes a V in one access; `p` is aligned to its size.
template <class V>
__device__ __forceinline__ void store(void* p, const V& value) {
  *static_cast<V*>(p) = value;
}

/// The same to global memory. Where a plain store's values come from several branches, the compiler may split it.
template <class V>
__device__ __forceinline__ void store_global(void* p, const V& value) {
  __stwb(static_cast<V*>(p), value);
}

/// Starts the copy of kBytes (4, 8 or 16; both sides aligned to it) from global to shared memory, or of zeros where
/// `valid` is false: then `global` is not read. Past the L1 cache for 16 bytes.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int source_bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(source_bytes));
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(kBytes),
                 "r"(source_bytes));
  }
}

/// Closes the group of this thread's copies since the last commit.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;"); }

/// Waits until at most kPending of this thread's groups are on their way. Other threads see the data after a barrier.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace cnnext::cuda

#else
#include "emulator.h"
#endif

namespace cnnext::cuda {

/// Keeps the compiler from knowing that `value`, of 32 bits, is the same as before: what is computed from it in a loop
/// is computed there.
__device__ __forceinline__ void forget_origin(unsigned& value) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(value));
#endif
}

}  // namespace cnnext::cuda
