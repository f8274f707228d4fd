// The tensor cores' instructions for one warp: 8x8 matrices from shared memory, and the product of 16x16 by 16x8. Under
// nvcc each is the one instruction; under g++ it calls the emulator (tests/emulator/emulator_matrix.h).
//
// All 32 lanes call together. Fragments are those of the PTX manual, "mma.sync.aligned.m16n8k16": with g = lane / 4 and
// t = lane % 4, lane holds
//   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, 2t+1]   a[2] = A[g][2t+8, 2t+9]   a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g]
//   d[0] = D[g][2t]         d[1] = D[g][2t+1]         d[2] = D[g+8][2t]         d[3] = D[g+8][2t+1]
#pragma once

#include "portability.h"

#ifdef __CUDACC__

namespace cnnext::cuda {

/// Four 8x8 matrices of 16-bit elements. Lane i gives the address (16-byte aligned) of row i % 8 of matrix i / 8; each
/// lane gets of every matrix its row lane / 4, elements 2 * (lane % 4) and the next.
__device__ __forceinline__ void load_matrices(unsigned (&fragment)[4], const void* shared_row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

/// The same, each matrix transposed: a lane gets its column lane / 4, elements 2 * (lane % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&fragment)[4], const void* shared_row) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

/// D += A * B for A 16x16, B 16x8, D 16x8 in float32.
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                                 __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                                 __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// D += A * B for A 16x8 and B 8x8: a[0] = A[g][2t, 2t+1], a[1] = A[g+8][2t, 2t+1], b = B[2t, 2t+1][g].
__device__ __forceinline__ void multiply_16x8x8(float (&d)[4], unsigned a0, unsigned a1, unsigned b, __half) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}
__device__ __forceinline__ void multiply_16x8x8(float (&d)[4], unsigned a0, unsigned a1, unsigned b, __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

/// D += A * B for A 16x8, B 8x8 in TF32: a[0] = A[g][t], a[1] = A[g+8][t], a[2] = A[g][t+4], a[3] = A[g+8][t+4],
/// b0 = B[t][g], b1 = B[t+4][g]; float32 bit patterns already rounded by `round_to_tf32`.
__device__ __forceinline__ void multiply_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned round_to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

}  // namespace cnnext::cuda

#else
#include "emulator_matrix.h"
#endif
