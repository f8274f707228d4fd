// The launch is kBlocks x kThreads threads. A line that the emulator must name is marked `PLANTED` and the bug's name.
#include "planted_bugs.h"

#include "portability.h"

namespace cnnext::planted_bugs {
namespace {

using namespace cnnext::cuda;

__device__ int here() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

/// The thread whose values a thread looks at: of the other warp.
__device__ int partner() { return static_cast<int>(threadIdx.x ^ 32); }

template <bool kPlanted>
__global__ void global_out_of_bounds(const float* x, float* y) {
  y[here()] = x[here() + (kPlanted ? 1 : 0)];  // PLANTED global_out_of_bounds
}

template <bool kPlanted>
__global__ void dynamic_shared_out_of_bounds(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  values[threadIdx.x + (kPlanted ? 1 : 0)] = x[here()];  // PLANTED dynamic_shared_out_of_bounds
  y[here()] = values[threadIdx.x + (kPlanted ? 1 : 0)];
}

template <bool kPlanted>
__global__ void static_shared_out_of_bounds(const float* x, float* y) {
  CNNEXT_STATIC_SHARED(float, values, kThreads);
  float* const first = values;
  first[threadIdx.x + (kPlanted ? 1 : 0)] = x[here()];  // PLANTED static_shared_out_of_bounds
  y[here()] = first[threadIdx.x + (kPlanted ? 1 : 0)];
}

template <bool kPlanted>
__global__ void copy_out_of_bounds(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  const bool valid = kPlanted || here() + 1 < kCount;
  copy_async<4>(values + threadIdx.x, x + here() + 1, valid);  // PLANTED copy_out_of_bounds
  copy_async_commit();
  copy_async_wait<0>();
  y[here()] = values[threadIdx.x];
}

template <bool kPlanted>
__global__ void misaligned_vector(const float* x, float* y) {
  const int i = here() / 8 * 4;
  y[here()] = load<float4>(x + i + (kPlanted ? 1 : 0)).x;  // PLANTED misaligned_vector
}

template <bool kPlanted>
__global__ void misaligned_cast(const float* x, float* y) {
  const int i = here() / 8 * 4;
  const float4 value = *reinterpret_cast<const float4*>(x + i + (kPlanted ? 1 : 0));  // PLANTED misaligned_cast
  y[here()] = value.x + value.y + value.z + value.w;
}

template <bool kPlanted>
__global__ void write_to_input(const float* x, float* y) {
  float* const target = kPlanted ? const_cast<float*>(x) : y;
  target[here()] = 1;  // PLANTED write_to_input
}

template <bool kPlanted>
__global__ void missing_barrier(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = x[here()];  // PLANTED missing_barrier
  if (!kPlanted) __syncthreads();
  y[here()] = values[partner()];  // PLANTED missing_barrier
}

template <bool kPlanted>
__global__ void second_missing_barrier(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    values[threadIdx.x] = x[here()] * i;  // PLANTED second_missing_barrier
    __syncthreads();
    sum += values[partner()];  // PLANTED second_missing_barrier
    if (!kPlanted) __syncthreads();
  }
  y[here()] = sum;
}

template <bool kPlanted>
__global__ void missing_syncwarp(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = x[here()];  // PLANTED missing_syncwarp
  if (!kPlanted) __syncwarp();
  y[here()] = values[threadIdx.x ^ 1];  // PLANTED missing_syncwarp
}

/// The lanes that read are not all in the mask.
template <bool kPlanted>
__global__ void syncwarp_of_too_few(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  values[threadIdx.x] = x[here()];  // PLANTED syncwarp_of_too_few
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  __syncwarp(kPlanted ? half : 0xffffffffu);
  y[here()] = values[threadIdx.x ^ 16];  // PLANTED syncwarp_of_too_few
}

template <bool kPlanted>
__global__ void copy_never_waited(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  copy_async<4>(values + threadIdx.x, x + here());  // PLANTED copy_never_waited
  copy_async_commit();
  if (!kPlanted) copy_async_wait<0>();
  y[here()] = 1;
}

template <bool kPlanted>
__global__ void copy_read_too_early(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  copy_async<4>(values + threadIdx.x, x + here());  // PLANTED copy_read_too_early
  copy_async_commit();
  copy_async_wait<kPlanted ? 1 : 0>();
  y[here()] = values[threadIdx.x];  // PLANTED copy_read_too_early
  copy_async_wait<0>();
}

template <bool kPlanted>
__global__ void copy_without_barrier(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  copy_async<4>(values + threadIdx.x, x + here());  // PLANTED copy_without_barrier
  copy_async_commit();
  copy_async_wait<0>();
  if (!kPlanted) __syncthreads();
  y[here()] = values[partner()];  // PLANTED copy_without_barrier
}

template <bool kPlanted>
__global__ void divergent_barrier(const float* x, float* y) {
  y[here()] = x[here()];
  if (!kPlanted || threadIdx.x < 32) __syncthreads();  // PLANTED divergent_barrier
}

template <bool kPlanted>
__global__ void different_barriers(const float* x, float* y) {
  y[here()] = x[here()];
  if (kPlanted && threadIdx.x < 32) {
    __syncthreads();  // PLANTED different_barriers
  } else {
    __syncthreads();  // PLANTED different_barriers
  }
}

template <bool kPlanted>
__global__ void wrong_shuffle_mask(const float* x, float* y) {
  const unsigned mask = kPlanted ? 0x0000ffffu : 0xffffffffu;
  y[here()] = __shfl_xor_sync(mask, x[here()], 1);  // PLANTED wrong_shuffle_mask
}

/// Each lane is in its mask, but half of them look at a lane that is not.
template <bool kPlanted>
__global__ void shuffle_from_outside(const float* x, float* y) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  y[here()] = __shfl_xor_sync(mask, x[here()], kPlanted ? 16 : 8);  // PLANTED shuffle_from_outside
}

template <bool kPlanted>
__global__ void deadlock(const float* x, float* y) {
  float value = x[here()];
  if (!kPlanted || threadIdx.x % 32 < 16) value = __shfl_xor_sync(0xffffffffu, value, 1);  // PLANTED deadlock
  __syncthreads();                                                                         // PLANTED deadlock
  y[here()] = value;
}

template <bool kPlanted>
__global__ void double_write(const float* x, float* y) {
  y[kPlanted ? here() / 2 : here()] = x[here()];  // PLANTED double_write
}

/// By the other block.
template <bool kPlanted>
__global__ void double_write_of_blocks(const float* x, float* y) {
  y[kPlanted ? threadIdx.x : here()] = x[here()];  // PLANTED double_write_of_blocks
}

template <bool kPlanted>
__global__ void global_race(const float* x, float* y) {
  const int other = static_cast<int>(blockIdx.x * blockDim.x) + partner();
  y[here()] = x[here()];  // PLANTED global_race
  if (!kPlanted) __syncthreads();
  const float value = y[other];  // PLANTED global_race
  __syncthreads();
  y[here()] = value;
}

template <bool kPlanted>
__global__ void global_race_of_blocks(const float* x, float* y) {
  y[here()] = x[here()];                                                 // PLANTED global_race_of_blocks
  const float value = y[(here() + (kPlanted ? kThreads : 0)) % kCount];  // PLANTED global_race_of_blocks
  if (value < 0) y[here()] = value;
}

template <bool kPlanted>
__global__ void uninitialised_dynamic_shared(const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  if (!kPlanted || threadIdx.x != 5) values[threadIdx.x] = x[here()];
  y[here()] = values[threadIdx.x];  // PLANTED uninitialised_dynamic_shared
}

/// Only the first block writes.
template <bool kPlanted>
__global__ void uninitialised_static_shared(const float* x, float* y) {
  CNNEXT_STATIC_SHARED(float, values, kThreads);
  if (!kPlanted || blockIdx.x == 0) values[threadIdx.x] = x[here()];
  y[here()] = values[threadIdx.x];  // PLANTED uninitialised_static_shared
}

using Kernel = void (*)(const float*, float*);

template <Kernel kWithBug, Kernel kWithout>
void run(bool planted, const float* x, float* y) {
  launch(planted ? kWithBug : kWithout, dim3(kBlocks), dim3(kThreads), kThreads * sizeof(float), nullptr, x, y);
}

int threads_so_far;

__global__ void thread_order_kernel(float* y) {
  const int first = threads_so_far++;
  __syncthreads();
  y[here()] = static_cast<float>(first + threads_so_far++);
}

template <class V>
__global__ void strided_reads_kernel(int stride, const float* x, float* y) {
  CNNEXT_DYNAMIC_SHARED(float, values);
  const int lane = static_cast<int>(threadIdx.x), floats = sizeof(V) / sizeof(float);
  for (int i = lane; i < 32 * floats * stride; i += 32) values[i] = x[i];
  __syncthreads();
  V from_global = load_global<V>(x + lane * stride * floats);  // STRIDED global
  V from_shared = load<V>(values + lane * stride * floats);    // STRIDED shared
  float first, second;
  memcpy(&first, &from_global, sizeof(float));
  memcpy(&second, &from_shared, sizeof(float));
  y[lane] = first + second;
}

template <class T>
uint16_t fma_bits_of(uint16_t a, uint16_t b, uint16_t c) {
  T values[3];
  const uint16_t bits[3] = {a, b, c};
  memcpy(static_cast<void*>(values), bits, sizeof(bits));
  const T result = __hfma(values[0], values[1], values[2]);
  uint16_t result_bits;
  memcpy(&result_bits, &result, sizeof(result));
  return result_bits;
}

__global__ void empty_kernel() {}

dim3 to_dim3(const std::vector<unsigned>& v) { return dim3(v[0], v[1], v[2]); }

}  // namespace

#define BUG(name) {#name, run<name<true>, name<false>>}

const std::vector<Bug>& bugs() {
  static const std::vector<Bug> all = [] {
    std::vector<Bug> result = {BUG(global_out_of_bounds),
                               BUG(dynamic_shared_out_of_bounds),
                               BUG(static_shared_out_of_bounds),
                               BUG(copy_out_of_bounds),
                               BUG(misaligned_vector),
                               BUG(misaligned_cast),
                               BUG(write_to_input),
                               BUG(missing_barrier),
                               BUG(second_missing_barrier),
                               BUG(missing_syncwarp),
                               BUG(syncwarp_of_too_few),
                               BUG(copy_never_waited),
                               BUG(copy_read_too_early),
                               BUG(copy_without_barrier),
                               BUG(divergent_barrier),
                               BUG(different_barriers),
                               BUG(wrong_shuffle_mask),
                               BUG(shuffle_from_outside),
                               BUG(deadlock),
                               BUG(double_write),
                               BUG(double_write_of_blocks),
                               BUG(global_race),
                               BUG(global_race_of_blocks),
                               BUG(uninitialised_dynamic_shared),
                               BUG(uninitialised_static_shared)};
    const std::vector<Bug> more = wgmma_bugs();
    result.insert(result.end(), more.begin(), more.end());
    return result;
  }();
  return all;
}

void thread_order(float* y) {
  threads_so_far = 0;
  launch(thread_order_kernel, dim3(1), dim3(kThreads), 0, nullptr, y);
}

void strided_reads(int vector, int stride, const float* x, float* y) {
  const auto kernel = vector == 1   ? strided_reads_kernel<float>
                      : vector == 2 ? strided_reads_kernel<float2>
                                    : strided_reads_kernel<float4>;
  launch(kernel, dim3(1), dim3(32), 32 * vector * stride * sizeof(float), nullptr, stride, x, y);
}

uint16_t fma_bits(bool bfloat16, uint16_t a, uint16_t b, uint16_t c) {
  return bfloat16 ? fma_bits_of<__nv_bfloat16>(a, b, c) : fma_bits_of<__half>(a, b, c);
}

void empty_launch(std::vector<unsigned> grid, std::vector<unsigned> block, size_t shared_bytes) {
  launch(empty_kernel, to_dim3(grid), to_dim3(block), shared_bytes, nullptr);
}

}  // namespace cnnext::planted_bugs
