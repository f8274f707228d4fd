// How a block of a channels-first kernel copies between global and shared memory.
//
// Planes of 7 x 7 or 14 x 14 have rows that no 16-byte access fits, but consecutive rows and planes are one run of
// memory. A run is copied to the place in shared memory that has the same address modulo the width of an access: a few
// elements ahead, whole accesses, a few elements behind. Shared memory therefore keeps the pitch of global memory.
#pragma once

#include "depthwise_nchw_tile.h"
#include "element.h"

namespace cnnext::cuda {

/// Which part of the output a block owns.
struct BlockNchw {
  int band, group;
  int64_t image;
};

__device__ __forceinline__ BlockNchw block_nchw(const TileNchw& tile) {
  const unsigned bands = tile.bands, groups = tile.groups;
  const unsigned planes_of_band = bands == 1 ? blockIdx.x : blockIdx.x / bands;
  const unsigned image = planes_of_band / groups;
  return {static_cast<int>(blockIdx.x - planes_of_band * bands), static_cast<int>(planes_of_band - image * groups),
          image};
}

/// Which patch of a block has a number: a plane, and rows and columns of patches.
struct PatchNchw {
  int plane, below, strip;
};

__device__ __forceinline__ PatchNchw patch_nchw(const TileNchw& tile, unsigned number) {
  const auto divide = [](unsigned i, unsigned divisor, unsigned inverse) {
    return divisor == 1 ? i : static_cast<unsigned>((uint64_t{i} * inverse) >> 32);
  };
  const unsigned plane = divide(number, tile.patches, tile.patches_inverse);
  const unsigned in_plane = number - plane * tile.patches;
  const unsigned below = divide(in_plane, tile.strips, tile.strips_inverse);
  return {static_cast<int>(plane), static_cast<int>(below), static_cast<int>(in_plane - below * tile.strips)};
}

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

  /// Calls body(element of global memory, its index in the run) for each element; for any strides. A warp takes a row.
  template <class Body>
  __device__ __forceinline__ void for_each(const Body& body) const {
#pragma unroll 1
    for (int row = threadIdx.x / 32; row < planes * rows; row += blockDim.x / 32) {
      T* from = global + row / rows * plane_stride + row % rows * row_stride;
#pragma unroll 1
      for (int column = threadIdx.x % 32; column < columns; column += 32) body(from[column], row * columns + column);
    }
  }
};

/// Starts the copy of `from` into shared memory and returns where its first element will be. All threads of the block
/// see it after copy_async_wait and a barrier. `region` is 16-byte aligned and has room for 16 bytes more.
template <int kThreads, class T>
__device__ __forceinline__ const T* copy_in(T* region, const PlaneRows<const T>& from) {
  constexpr int kWidth = kVector<T>;
  if (!from.dense) {
    from.for_each([&](const T& element, int i) { region[i] = element; });
    return region;
  }
  const Run run = Run::of(from.global, from.count(), kWidth);
  T* const to = region + run.skew;
#pragma unroll 4
  for (int i = threadIdx.x; i < run.chunks; i += kThreads) {
    const int element = run.head + i * kWidth;
    copy_async<16>(to + element, from.global + element);
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < run.rest; i += kThreads) {
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

/// Four sums as elements, in one access.
__device__ __forceinline__ void store_4(float* p, const float (&v)[4]) {
  store(p, make_float4(v[0], v[1], v[2], v[3]));
}
template <class T>
__device__ __forceinline__ void store_4(T* p, const float (&v)[4]) {
  store(p, make_uint2(pack_pair(v[0], v[1], T()), pack_pair(v[2], v[3], T())));
}

/// Writes float32 sums from shared memory, after the activation, rounded to T.
template <int kThreads, class T>
__device__ __forceinline__ void copy_out(const PlaneRows<T>& to, const float* shared, Activation activation) {
  const auto finish = [&](T& element, float sum) {
    T rounded;
    round_to(rounded, activate(sum, activation));
    store(&element, rounded);
  };
  if (!to.dense) {
    to.for_each([&](T& element, int i) { finish(element, shared[i]); });
    return;
  }
  constexpr int kWidth = kOutWidth<float>;
  const Run run = Run::of(to.global, to.count(), kWidth);
  const auto copy_chunks = [&](const auto& activate_4) {
#pragma unroll 4
    for (int i = threadIdx.x; i < run.chunks; i += kThreads) {
      const int element = run.head + i * kWidth;
      const float4 sums = load<float4>(shared + element);
      float values[kWidth] = {sums.x, sums.y, sums.z, sums.w};
      activate_4(values);
      store_4(to.global + element, values);
    }
  };
  // The usual one has a loop without a branch for each access.
  if (activation == Activation::kNone) {
    copy_chunks([](float (&)[kWidth]) {});
  } else {
    copy_chunks([=](float (&values)[kWidth]) { activate_all(values, activation); });
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < run.rest; i += kThreads) {
    const int element = run.single(i, kWidth);
    finish(to.global[element], shared[element]);
  }
}

/// Writes finished elements from shared memory.
template <int kThreads, class T>
__device__ __forceinline__ void copy_out(const PlaneRows<T>& to, const T* shared) {
  if (!to.dense) {
    to.for_each([&](T& element, int i) { element = shared[i]; });
    return;
  }
  constexpr int kWidth = kOutWidth<T>;
  const Run run = Run::of(to.global, to.count(), kWidth);
#pragma unroll 4
  for (int i = threadIdx.x; i < run.chunks; i += kThreads) {
    const int element = run.head + i * kWidth;
    store(to.global + element, load<uint4>(shared + element));
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < run.rest; i += kThreads) {
    const int element = run.single(i, kWidth);
    to.global[element] = shared[element];
  }
}

}  // namespace cnnext::cuda
