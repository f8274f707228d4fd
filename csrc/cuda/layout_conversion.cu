// Copies activations between NCHW and channels_last, for kernels that know the latter only.
//
//   to_channels_last    packed[n][h][w][c] = planes[n, c, h, w]
//   from_channels_last  planes[n, c, h, w] = packed[n][h][w][c]
//
// A block owns 64 pixels of 64 channels and turns them round in shared memory. On the side of the planes neighbouring
// threads own neighbouring pixels, an element at a time, since rows need not be aligned; on the packed side a thread
// owns 16 bytes of channels. A row of the tile, the pixels of one channel, has an odd number of elements: 8 threads
// that gather channels 8 apart then touch different banks.
//
// Assumes: the number of channels is a multiple of a 16-byte vector, `packed` is dense and 16-byte aligned. Bound by
// memory: every element is read once and written once.
#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 64;
constexpr int kChannels = 64;
constexpr int kPitch = kPixels + 1;

/// Where a block stands, and the sizes it needs.
struct Tiles {
  int64_t C, H, W;
  Strides4 strides;  // of the planes
  int64_t pixel_tiles, channel_tiles;
};

/// The elements of 64 x 64 that a thread handles on the planes' side: f(channel in the tile, pixel in the tile,
/// offset).
template <class F>
__device__ __forceinline__ void for_plane_elements(const Tiles& t, int64_t n, int64_t first_channel,
                                                   int64_t first_pixel, F f) {
  const int in_tile = threadIdx.x % kPixels;
  const int64_t pixel = first_pixel + in_tile;
  if (pixel >= t.H * t.W) return;
  const int64_t offset = n * t.strides.n + pixel / t.W * t.strides.h + pixel % t.W;
#pragma unroll 4
  for (int channel = threadIdx.x / kPixels; channel < kChannels; channel += kThreads / kPixels) {
    if (first_channel + channel < t.C) f(channel, in_tile, offset + (first_channel + channel) * t.strides.c);
  }
}

/// The same on the packed side: f(first channel in the tile, pixel in the tile, offset) of 16 bytes each.
template <class T, class F>
__device__ __forceinline__ void for_packed_vectors(const Tiles& t, int64_t n, int64_t first_channel,
                                                   int64_t first_pixel, F f) {
  constexpr int kVectors = kChannels / kVector<T>;
  const int channel = threadIdx.x % kVectors * kVector<T>;
  if (first_channel + channel >= t.C) return;
#pragma unroll 2
  for (int in_tile = threadIdx.x / kVectors; in_tile < kPixels; in_tile += kThreads / kVectors) {
    const int64_t pixel = first_pixel + in_tile;
    if (pixel < t.H * t.W) f(channel, in_tile, (n * t.H * t.W + pixel) * t.C + first_channel + channel);
  }
}

/// Elements are moved as bits: `T` is an unsigned integer of their size.
template <class T, bool kToPacked>
__global__ void __launch_bounds__(kThreads)
    layout_conversion_kernel(Tiles tiles, const T* __restrict__ from, T* __restrict__ to) {
  CNNEXT_STATIC_SHARED(T, smem_tile, kChannels * kPitch);
  int64_t index = blockIdx.x;
  const int64_t first_channel = index % tiles.channel_tiles * kChannels;
  index /= tiles.channel_tiles;
  const int64_t first_pixel = index % tiles.pixel_tiles * kPixels;
  const int64_t n = index / tiles.pixel_tiles;
  constexpr int kWidth = kVector<T>;

  if constexpr (kToPacked) {
    for_plane_elements(tiles, n, first_channel, first_pixel, [&](int channel, int pixel, int64_t offset) {
      smem_tile[channel * kPitch + pixel] = from[offset];
    });
    __syncthreads();
    for_packed_vectors<T>(tiles, n, first_channel, first_pixel, [&](int channel, int pixel, int64_t offset) {
      T values[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] = smem_tile[(channel + i) * kPitch + pixel];
      store(to + offset, bit_cast<uint4>(values));
    });
  } else {
    for_packed_vectors<T>(tiles, n, first_channel, first_pixel, [&](int channel, int pixel, int64_t offset) {
      struct Values {
        T elements[kWidth];
      };
      const auto values = bit_cast<Values>(load_global<uint4>(from + offset));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) smem_tile[(channel + i) * kPitch + pixel] = values.elements[i];
    });
    __syncthreads();
    for_plane_elements(tiles, n, first_channel, first_pixel, [&](int channel, int pixel, int64_t offset) {
      to[offset] = smem_tile[channel * kPitch + pixel];
    });
  }
}

template <bool kToPacked>
void convert(DType dtype, const Activations& planes, const void* from, void* to, Stream stream) {
  Tiles tiles{planes.C,
              planes.H,
              planes.W,
              planes.strides,
              ceil_div(planes.H * planes.W, kPixels),
              ceil_div(planes.C, kChannels)};
  const dim3 grid(static_cast<unsigned>(planes.N * tiles.pixel_tiles * tiles.channel_tiles));
  if (size_of(dtype) == 2) {
    launch(layout_conversion_kernel<uint16_t, kToPacked>, grid, dim3(kThreads), 0, stream, tiles,
           static_cast<const uint16_t*>(from), static_cast<uint16_t*>(to));
  } else {
    launch(layout_conversion_kernel<uint32_t, kToPacked>, grid, dim3(kThreads), 0, stream, tiles,
           static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to));
  }
}

}  // namespace

void to_channels_last(DType dtype, const Activations& planes, const void* from, void* packed, Stream stream) {
  convert<true>(dtype, planes, from, packed, stream);
}

void from_channels_last(DType dtype, const Activations& planes, const void* packed, void* to, Stream stream) {
  convert<false>(dtype, planes, packed, to, stream);
}

}  // namespace cnnext::cuda
