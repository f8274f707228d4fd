// The instructions of a warpgroup (128 threads, 4 warps of which the first has a number divisible by 4) on sm_90a:
// matrix products straight from shared memory, the tensor copies that bring their factors there, and the barriers that
// order the two. Under nvcc each is the one instruction; under g++ it calls the emulator
// (tests/emulator/emulator_wgmma.h).
//
// Barriers ("mbarrier"), 8 bytes of shared memory. A barrier is in a phase, which ends when all arrivals have come and
// all the bytes that they said they expect have been written; then the next begins. `parity` is the lowest bit of a
// phase's number, from 0 on, so waiting for parity 1 on a new barrier returns at once.
//
// Products ("wgmma") run asynchronously: between the call and the wait that follows, nobody may touch the sums or write
// to the factors. The 64 x N sums of D lie as those of mma.sync: with g = lane / 4 and t = lane % 4, warp i of the
// warpgroup holds
//   d[4 * j]     = D[16 * i + g][8 * j + 2 * t]        d[4 * j + 1] = D[16 * i + g][8 * j + 2 * t + 1]
//   d[4 * j + 2] = D[16 * i + g + 8][8 * j + 2 * t]    d[4 * j + 3] = D[16 * i + g + 8][8 * j + 2 * t + 1]
#pragma once

#include "portability.h"
#include "tensor_map.h"

/// Defined where these instructions exist: in the emulator, and when nvcc compiles for sm_90a.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CNNEXT_HAS_WGMMA
#endif

namespace cnnext::cuda {

constexpr int kWarpgroup = 128;

/// Reduced elements of one product.
constexpr int kWgmmaDepth = 16;

/// Describes a factor in shared memory with the 128-byte swizzle (PTX, "Matrix descriptor"): bits 0 to 13 its address,
/// 16 to 29 the leading dimension's byte offset, 32 to 45 the stride dimension's, each over 16, and 62 to 63 the
/// swizzle, 1 for 128 bytes.
///
/// A line of 128 bytes holds either 64 reduced elements of a row of A (a column of B): "K-major", where `stride` is
/// from 8 lines to the next 8 and `leading` has no meaning; or 64 columns of B of one reduced element: "MN-major",
/// where `stride` is from 8 reduced elements to the next 8 and `leading` from 64 columns to the next 64.
__device__ __forceinline__ uint64_t matrix_descriptor(unsigned address, int leading, int stride) {
  constexpr uint64_t kSwizzle128 = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>((leading & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((stride & 0x3ffff) >> 4) << 32 | kSwizzle128 << 62;
}

/// The same factor, `bytes` further on.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

}  // namespace cnnext::cuda

#ifdef __CUDACC__

namespace cnnext::cuda {

/// Shared memory as descriptors address it.
__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// --- Barriers. ---

/// One thread makes a barrier with this many arrivals a phase; `fence_async_proxy` and a __syncthreads follow.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/// What this thread has written to shared memory so far, barriers included, comes before what tensor copies and
/// products do there later.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/// Arrives, and has the phase wait for this many bytes of tensor copies too.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

/// Waits until the phase with this parity has ended: the one before the current phase, if it has the other parity.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, int parity) {
  unsigned done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// --- Tensor copies. One thread starts them; `barrier` counts their bytes, all of the tile whatever is outside. ---

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// Copies the tile of a TiledTensor that begins at these indices, the contiguous dimension first.
__device__ __forceinline__ void copy_tile(void* shared, const TensorMap& map, uint64_t* barrier, int i0, int i1,
                                          int i2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(i0), "r"(i1), "r"(i2)
      : "memory");
}

/// Copies the column of PixelColumns that begins at this pixel of the walk and channel.
__device__ __forceinline__ void copy_pixels(void* shared, const TensorMap& map, uint64_t* barrier, int channel, int w,
                                            int h, int n, int offset_w, int offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(channel), "r"(w), "r"(h), "r"(n),
      "h"(static_cast<unsigned short>(offset_w)), "h"(static_cast<unsigned short>(offset_h))
      : "memory");
}

// --- Products. All threads of the warpgroup call together. ---

/// Before the first product, and between any access to the sums and the next product.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Closes the group of the products since the last commit.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most kPending groups of this warp's products are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from reading the sums before the wait that stands before this.
template <int kCount>
__device__ __forceinline__ void keep_sums_behind_wait(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// The operands of the products' assembly: 16 sums, and the numbers of 64.
#define CNNEXT_SUMS_4(i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define CNNEXT_SUMS_16(i) CNNEXT_SUMS_4(i), CNNEXT_SUMS_4((i) + 4), CNNEXT_SUMS_4((i) + 8), CNNEXT_SUMS_4((i) + 12)
#define CNNEXT_SUMS_64(i) \
  CNNEXT_SUMS_16(i), CNNEXT_SUMS_16((i) + 16), CNNEXT_SUMS_16((i) + 32), CNNEXT_SUMS_16((i) + 48)
#define CNNEXT_NUMBERS_0_TO_63                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CNNEXT_NUMBERS_64_TO_127                                                                 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// Sums, descriptors of A and B; D = A * B + D with neither factor negated, A K-major, B MN-major if %last is 1.
#define CNNEXT_WGMMA_128(type)                                                                          \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" CNNEXT_NUMBERS_0_TO_63 \
               "}, %64, %65, 1, 1, 1, 0, %66;"                                                          \
               : CNNEXT_SUMS_64(0)                                                                      \
               : "l"(a), "l"(b), "n"(static_cast<int>(kColumnsAlongLine)))
#define CNNEXT_WGMMA_256(type)                                                                          \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" CNNEXT_NUMBERS_0_TO_63 \
               ", " CNNEXT_NUMBERS_64_TO_127 "}, %128, %129, 1, 1, 1, 0, %130;"                         \
               : CNNEXT_SUMS_64(0), CNNEXT_SUMS_64(64)                                                  \
               : "l"(a), "l"(b), "n"(static_cast<int>(kColumnsAlongLine)))

/// Starts D += A * B for A 64 x 16 and B 16 x N, N = 128 or 256 by the number of sums. `a` and `b` are matrix
/// descriptors: A has its reduced elements along a line, B its columns if kColumnsAlongLine.
template <bool kColumnsAlongLine>
__device__ __forceinline__ void wgmma_multiply(float (&d)[64], uint64_t a, uint64_t b, __half) {
  CNNEXT_WGMMA_128("f16");
}
template <bool kColumnsAlongLine>
__device__ __forceinline__ void wgmma_multiply(float (&d)[64], uint64_t a, uint64_t b, __nv_bfloat16) {
  CNNEXT_WGMMA_128("bf16");
}
template <bool kColumnsAlongLine>
__device__ __forceinline__ void wgmma_multiply(float (&d)[128], uint64_t a, uint64_t b, __half) {
  CNNEXT_WGMMA_256("f16");
}
template <bool kColumnsAlongLine>
__device__ __forceinline__ void wgmma_multiply(float (&d)[128], uint64_t a, uint64_t b, __nv_bfloat16) {
  CNNEXT_WGMMA_256("bf16");
}

#undef CNNEXT_SUMS_4
#undef CNNEXT_SUMS_16
#undef CNNEXT_SUMS_64
#undef CNNEXT_NUMBERS_0_TO_63
#undef CNNEXT_NUMBERS_64_TO_127
#undef CNNEXT_WGMMA_128
#undef CNNEXT_WGMMA_256

}  // namespace cnnext::cuda

#else
#include "emulator_wgmma.h"
#endif
