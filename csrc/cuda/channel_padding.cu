// Copies activations whose channels are no whole 16-byte vector, those of an image's three colours above all, to and
// from a dense channels_last tensor with channels of zeros at the end.
//
//   pad_channels    packed[n][h][w][c] = x[n, c, h, w] for c < C, else 0
//   unpad_channels  x[n, c, h, w] = packed[n][h][w][c] for c < C
//
// A thread owns one 16-byte vector of channels of one pixel; neighbouring threads own neighbouring pixels, which are
// neighbours in memory on both sides. Any strides. Bound by memory.
#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;

/// Elements are moved as bits: `T` is an unsigned integer of their size.
template <class T>
struct Vector {
  T elements[kVector<T>];
};

template <class T, bool kToPacked>
__global__ void __launch_bounds__(kThreads)
    channel_padding_kernel(Activations x, int vectors, const T* __restrict__ from, T* __restrict__ to) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t pixels = x.N * x.H * x.W;
  if (index >= pixels * vectors) return;
  const int64_t pixel = index % pixels;
  const int vector = static_cast<int>(index / pixels);
  const int64_t w = pixel % x.W, h = pixel / x.W % x.H, n = pixel / x.W / x.H;
  const int64_t offset = n * x.strides.n + h * x.strides.h + w * x.strides.w;
  const int64_t packed = (pixel * vectors + vector) * kVector<T>;
  const int first = vector * kVector<T>;
  Vector<T> values{};
  if constexpr (!kToPacked) values = bit_cast<Vector<T>>(load_global<uint4>(from + packed));
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if (first + i >= x.C) break;
    const int64_t at = offset + (first + i) * x.strides.c;
    if constexpr (kToPacked) {
      values.elements[i] = from[at];
    } else {
      to[at] = values.elements[i];
    }
  }
  if constexpr (kToPacked) store(to + packed, bit_cast<uint4>(values));
}

template <bool kToPacked>
void run(DType dtype, const Activations& x, int padded_channels, const void* from, void* to, Stream stream) {
  const auto launch_with = [&](auto bits) {
    using T = decltype(bits);
    const int vectors = padded_channels / kVector<T>;
    const dim3 grid(static_cast<unsigned>(ceil_div(x.N * x.H * x.W * vectors, kThreads)));
    launch(channel_padding_kernel<T, kToPacked>, grid, dim3(kThreads), 0, stream, x, vectors,
           static_cast<const T*>(from), static_cast<T*>(to));
  };
  size_of(dtype) == 2 ? launch_with(uint16_t()) : launch_with(uint32_t());
}

}  // namespace

void pad_channels(DType dtype, const Activations& x, int padded_channels, const void* from, void* packed,
                  Stream stream) {
  run<true>(dtype, x, padded_channels, from, packed, stream);
}

void unpad_channels(DType dtype, const Activations& x, int padded_channels, const void* packed, void* to,
                    Stream stream) {
  run<false>(dtype, x, padded_channels, packed, to, stream);
}

}  // namespace cnnext::cuda
