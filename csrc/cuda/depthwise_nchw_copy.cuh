// How a block of a channels-first kernel copies between global and shared memory.
//
// Planes of 7 x 7 or 14 x 14 have rows that no 16-byte access fits, but consecutive rows and planes are one run of
// memory. A run is copied to the place in shared memory that has the same address modulo the width of an access: a few
// elements ahead, whole accesses, a few elements behind. Shared memory therefore keeps the pitch of global memory.
#pragma once

#include "element.h"

namespace cnnext::cuda {

__device__ __forceinline__ int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int threads_of_block() { return blockDim.x * blockDim.y; }

/// A run of `count` elements, cut at addresses that are multiples of `width` elements: `skew` elements behind such an
/// address it begins; then come `head` elements, `chunks` of `width`, and `rest - head` elements.
struct Run {
  int skew, head, chunks, rest;

  template <class T>
  __device__ static Run of(const T* global, int count, int width) {
    Run run;
    run.skew = static_cast<int>(reinterpret_cast<uintptr_t>(global) / sizeof(T)) & (width - 1);
    run.head = min((width - run.skew) & (width - 1), count);
    run.chunks = (count - run.head) / width;
    run.rest = count - run.chunks * width;
    return run;
  }

  /// The i-th of the elements outside the chunks.
  __device__ int single(int i, int width) const { return i < head ? i : i + chunks * width; }
};

/// Rows of consecutive planes of a tensor, of which the first begins at `global`.
template <class T>
struct PlaneRows {
  T* global;
  int64_t plane_stride, row_stride;
  int planes, rows, columns;
  bool dense;  // they are one run

  __device__ int count() const { return planes * rows * columns; }

  /// Calls body(element of global memory, its index in the run) for each element; for any strides.
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
    const int lanes = min(32, threads_of_block());
    const int lane = thread_of_block() % lanes;
    const int teams = threads_of_block() / lanes;  // lanes beyond the last whole team have nothing to do
    for (int row = thread_of_block() / lanes; row < planes * rows; row += teams) {
      if (thread_of_block() >= teams * lanes) break;
      T* from = global + row / rows * plane_stride + row % rows * row_stride;
      for (int column = lane; column < columns; column += lanes) body(from[column], row * columns + column);
    }
  }
};

/// Starts the copy of `from` into shared memory and returns where its first element will be. All threads of the block
/// see it after copy_async_wait and a barrier. `region` is 16-byte aligned and has room for 16 bytes more.
template <class T>
__device__ __forceinline__ const T* copy_in(T* region, const PlaneRows<const T>& from) {
  constexpr int kWidth = kVector<T>;
  if (!from.dense) {
    from.for_each([&](const T& element, int i) { region[i] = element; });
    return region;
  }
  const Run run = Run::of(from.global, from.count(), kWidth);
  T* const to = region + run.skew;
  for (int i = thread_of_block(); i < run.chunks; i += threads_of_block()) {
    const int element = run.head + i * kWidth;
    copy_async<16>(to + element, from.global + element);
  }
  for (int i = thread_of_block(); i < run.rest; i += threads_of_block()) {
    const int element = run.single(i, kWidth);
    to[element] = from.global[element];
  }
  return to;
}

/// Elements of shared memory in an access of copy_out, which is as wide as its conflict-free reads of S.
template <class S>
constexpr int kOutWidth = 16 / sizeof(S);

/// Where in `region` the first element must be for copy_out.
template <class T, class S>
__device__ __forceinline__ S* place_of_output(S* region, const PlaneRows<T>& to) {
  return to.dense ? region + Run::of(to.global, 0, kOutWidth<S>).skew : region;
}

/// Writes float32 sums from shared memory, after the activation, rounded to T.
template <class T>
__device__ __forceinline__ void copy_out(const PlaneRows<T>& to, const float* shared, Activation activation) {
  const auto finish = [&](T& element, float sum) {
    float values[1] = {sum};
    activate_all(values, activation);
    round_to(element, values[0]);
  };
  if (!to.dense) {
    to.for_each([&](T& element, int i) { finish(element, shared[i]); });
    return;
  }
  constexpr int kWidth = kOutWidth<float>;
  const Run run = Run::of(to.global, to.count(), kWidth);
  for (int i = thread_of_block(); i < run.chunks; i += threads_of_block()) {
    const int element = run.head + i * kWidth;
    const float4 sums = load<float4>(shared + element);
    float values[kWidth] = {sums.x, sums.y, sums.z, sums.w};
    activate_all(values, activation);
    if constexpr (sizeof(T) == 4) {
      store(to.global + element, make_float4(values[0], values[1], values[2], values[3]));
    } else {
      store(to.global + element,
            make_uint2(pack_pair(values[0], values[1], T()), pack_pair(values[2], values[3], T())));
    }
  }
  for (int i = thread_of_block(); i < run.rest; i += threads_of_block()) {
    const int element = run.single(i, kWidth);
    finish(to.global[element], shared[element]);
  }
}

/// Writes finished elements from shared memory.
template <class T>
__device__ __forceinline__ void copy_out(const PlaneRows<T>& to, const T* shared) {
  if (!to.dense) {
    to.for_each([&](T& element, int i) { element = shared[i]; });
    return;
  }
  constexpr int kWidth = kOutWidth<T>;
  const Run run = Run::of(to.global, to.count(), kWidth);
  for (int i = thread_of_block(); i < run.chunks; i += threads_of_block()) {
    const int element = run.head + i * kWidth;
    store(to.global + element, load<uint4>(shared + element));
  }
  for (int i = thread_of_block(); i < run.rest; i += threads_of_block()) {
    const int element = run.single(i, kWidth);
    to.global[element] = shared[element];
  }
}

/// Whether every one of `values` is finite.
template <int kRows, int kColumns>
__device__ __forceinline__ bool all_finite(const float (&values)[kRows][kColumns]) {
  float probe = 0;  // NaN once a factor is infinite or NaN
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int s = 0; s < kColumns; ++s) probe += 0.0f * values[r][s];
  }
  return probe == 0;
}

}  // namespace cnnext::cuda
