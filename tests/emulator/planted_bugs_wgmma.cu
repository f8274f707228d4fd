// The bugs that tensor copies, mbarriers and wgmma make possible; see planted_bugs.cu. Blocks have one warpgroup.
#include "planted_bugs.h"

#include "wgmma_instructions.h"

namespace cnnext::planted_bugs {
namespace {

using namespace cnnext::cuda;

constexpr int kLines = 4, kTileBytes = kLines * 128;  // of the operand x
constexpr int kColumns = 128, kABytes = 64 * 128, kBBytes = kColumns * 128;
constexpr int kSharedBytes = kSwizzleAlignment + kABytes + kBBytes;

/// The start of shared memory, moved to where a tile may start.
__device__ unsigned char* first_tile(unsigned char* shared) {
  return shared + (-shared_address(shared) & (kSwizzleAlignment - 1));
}

__device__ void init_barrier(uint64_t* barrier, int arrivals, bool fence = true) {
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, arrivals);
    if (fence) fence_async_proxy();
  }
  __syncthreads();
}

__device__ float element(const unsigned char* tile) {
  return reinterpret_cast<const float*>(tile)[threadIdx.x % kThreads];
}

__device__ void write(float* y, float value) {
  if (threadIdx.x < kThreads) y[blockIdx.x * kThreads + threadIdx.x] = value;
}

template <bool kPlanted>
__global__ void tensor_copy_without_expect(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, barrier, 1);
  unsigned char* tile = first_tile(shared);
  init_barrier(barrier, 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kPlanted ? kTileBytes / 2 : kTileBytes);
    copy_tile(tile, map, barrier, 0, 0, 0);  // PLANTED tensor_copy_without_expect
  }
  mbarrier_wait(barrier, 0);
  write(y, element(tile));
}

template <bool kPlanted>
__global__ void tensor_copy_expects_too_much(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, barrier, 1);
  unsigned char* tile = first_tile(shared);
  init_barrier(barrier, 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kPlanted ? 2 * kTileBytes : kTileBytes);
    copy_tile(tile, map, barrier, 0, 0, 0);
  }
  mbarrier_wait(barrier, 0);  // PLANTED tensor_copy_expects_too_much
  write(y, element(tile));
}

template <bool kPlanted>
__global__ void tensor_copy_never_waited(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, barrier, 1);
  init_barrier(barrier, 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kTileBytes);
    copy_tile(first_tile(shared), map, barrier, 0, 0, 0);  // PLANTED tensor_copy_never_waited
  }
  if (!kPlanted) mbarrier_wait(barrier, 0);
  write(y, 1);
}

/// A __syncthreads orders what threads do, and not a copy that none of them has waited for.
template <bool kPlanted>
__global__ void tensor_copy_before_barrier(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, barrier, 1);
  unsigned char* tile = first_tile(shared);
  init_barrier(barrier, 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kTileBytes);
    copy_tile(tile, map, barrier, 0, 0, 0);
    if (!kPlanted) mbarrier_wait(barrier, 0);
  }
  __syncthreads();
  const auto* elements = reinterpret_cast<const float*>(tile);
  const float value = elements[threadIdx.x % kThreads];  // PLANTED tensor_copy_before_barrier
  mbarrier_wait(barrier, 0);
  write(y, value);
}

template <bool kPlanted>
__global__ void misaligned_slot(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, barrier, 1);
  unsigned char* tile = first_tile(shared) + (kPlanted ? kSwizzleAlignment / 2 : 0);
  init_barrier(barrier, 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kTileBytes);
    copy_tile(tile, map, barrier, 0, 0, 0);  // PLANTED misaligned_slot
  }
  mbarrier_wait(barrier, 0);
  write(y, element(tile));
}

template <bool kPlanted>
__global__ void unfenced_mbarrier(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, barrier, 1);
  unsigned char* tile = first_tile(shared);
  init_barrier(barrier, 1, /*fence=*/!kPlanted);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kTileBytes);
    copy_tile(tile, map, barrier, 0, 0, 0);  // PLANTED unfenced_mbarrier
  }
  mbarrier_wait(barrier, 0);
  write(y, element(tile));
}

/// Found where the tile is read, or, without a watch on reads, because nobody waits for the copy's phase.
template <bool kPlanted>
__global__ void mbarrier_wrong_parity(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, barrier, 1);
  unsigned char* tile = first_tile(shared);
  init_barrier(barrier, 1);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kTileBytes);
    copy_tile(tile, map, barrier, 0, 0, 0);  // PLANTED mbarrier_wrong_parity
  }
  mbarrier_wait(barrier, kPlanted ? 1 : 0);                                // PLANTED mbarrier_wrong_parity
  write(y, reinterpret_cast<const float*>(tile)[threadIdx.x % kThreads]);  // PLANTED mbarrier_wrong_parity
}

/// Threads say that they are done with the tile before they have read it.
template <bool kPlanted>
__global__ void slot_overwritten(const __grid_constant__ TensorMap map, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  CNNEXT_STATIC_SHARED(uint64_t, full, 1);
  CNNEXT_STATIC_SHARED(uint64_t, empty, 1);
  unsigned char* tile = first_tile(shared);
  init_barrier(full, 1);
  init_barrier(empty, kWarpgroup);
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    if (threadIdx.x == 0) {
      mbarrier_wait(empty, i ^ 1);
      mbarrier_arrive_expect(full, kTileBytes);
      copy_tile(tile, map, full, 0, 0, 0);  // PLANTED slot_overwritten
    }
    mbarrier_wait(full, i);
    if (kPlanted) mbarrier_arrive(empty);
    sum += reinterpret_cast<const float*>(tile)[threadIdx.x % kThreads];  // PLANTED slot_overwritten
    if (!kPlanted) mbarrier_arrive(empty);
  }
  write(y, sum);
}

/// Factors of zeros, and what starts their product.
struct Factors {
  unsigned char* first;

  __device__ explicit Factors(unsigned char* shared) : first(first_tile(shared)) {
    for (int i = threadIdx.x * 16; i < kABytes + kBBytes; i += kWarpgroup * 16)
      store(first + i, make_uint4(0, 0, 0, 0));
    fence_async_proxy();
    __syncthreads();
  }
  __device__ uint64_t a() const { return matrix_descriptor(shared_address(first), 0, 1024); }
  __device__ uint64_t b() const { return matrix_descriptor(shared_address(first + kABytes), 0, 1024); }
};

template <bool kPlanted>
__global__ void product_sum_read_early(const __grid_constant__ TensorMap, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  const Factors factors(shared);
  float sums[kColumns / 2] = {};
  wgmma_fence();
  wgmma_multiply<false>(sums, factors.a(), factors.b(), __half());
  wgmma_commit();
  if (!kPlanted) wgmma_wait<0>();
  const float sum = sums[threadIdx.x % 2];  // PLANTED product_sum_read_early
  wgmma_wait<0>();
  write(y, sum);
}

template <bool kPlanted>
__global__ void product_never_waited(const __grid_constant__ TensorMap, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  const Factors factors(shared);
  float sums[kColumns / 2] = {};
  wgmma_fence();
  wgmma_multiply<false>(sums, factors.a(), factors.b(), __half());  // PLANTED product_never_waited
  wgmma_commit();
  if (!kPlanted) wgmma_wait<0>();
  write(y, 1);
}

template <bool kPlanted>
__global__ void product_without_fence(const __grid_constant__ TensorMap, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  const Factors factors(shared);
  float sums[kColumns / 2] = {};
  if (!kPlanted) wgmma_fence();
  wgmma_multiply<false>(sums, factors.a(), factors.b(), __half());  // PLANTED product_without_fence
  wgmma_commit();
  wgmma_wait<0>();
  write(y, sums[0]);
}

template <bool kPlanted>
__global__ void product_factor_overwritten(const __grid_constant__ TensorMap, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  const Factors factors(shared);
  float sums[kColumns / 2] = {};
  wgmma_fence();
  wgmma_multiply<false>(sums, factors.a(), factors.b(), __half());  // PLANTED product_factor_overwritten
  wgmma_commit();
  if (!kPlanted) {
    wgmma_wait<0>();
    __syncthreads();
  }
  reinterpret_cast<float*>(factors.first)[threadIdx.x] = 1;  // PLANTED product_factor_overwritten
  wgmma_wait<0>();
  write(y, sums[0]);
}

template <bool kPlanted>
__global__ void products_of_warps_differ(const __grid_constant__ TensorMap, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  const Factors factors(shared);
  float sums[kColumns / 2] = {};
  const uint64_t b = factors.b() + (kPlanted && threadIdx.x >= 64 ? 2 : 0);
  wgmma_fence();
  wgmma_multiply<false>(sums, factors.a(), b, __half());  // PLANTED products_of_warps_differ
  wgmma_commit();
  wgmma_wait<0>();
  write(y, sums[0]);
}

template <bool kPlanted>
__global__ void misaligned_factor(const __grid_constant__ TensorMap, float* y) {
  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  const Factors factors(shared);
  float sums[kColumns / 2] = {};
  const uint64_t a = advance(factors.a(), kPlanted ? 128 : 0);
  wgmma_fence();
  wgmma_multiply<false>(sums, a, factors.b(), __half());  // PLANTED misaligned_factor
  wgmma_commit();
  wgmma_wait<0>();
  write(y, sums[0]);
}

using Kernel = void (*)(TensorMap, float*);

template <Kernel kWithBug, Kernel kWithout>
void run(bool planted, const float* x, float* y) {
  const TensorMap map = make_tensor_map(TiledTensor{x, {64, 1, kLines}, {64, 64}, kLines}, DType::kFloat16);
  launch(planted ? kWithBug : kWithout, dim3(kBlocks), dim3(kWarpgroup), kSharedBytes, nullptr, map, y);
}

}  // namespace

#define BUG(name) {#name, run<name<true>, name<false>>}

std::vector<Bug> wgmma_bugs() {
  return {BUG(tensor_copy_without_expect),
          BUG(tensor_copy_expects_too_much),
          BUG(tensor_copy_never_waited),
          BUG(tensor_copy_before_barrier),
          BUG(misaligned_slot),
          BUG(unfenced_mbarrier),
          BUG(mbarrier_wrong_parity),
          BUG(slot_overwritten),
          BUG(product_sum_read_early),
          BUG(product_never_waited),
          BUG(product_without_fence),
          BUG(product_factor_overwritten),
          BUG(products_of_warps_differ),
          BUG(misaligned_factor)};
}

}  // namespace cnnext::planted_bugs
