// The fused depthwise-separable block, channels_last: filters of 3x3 and 5x5, stride 1 and 2, one input channel a
// filter.
//
//   middle[m][c] = round(act1(bias1[c] + sum over r, s of x[n, p * stride - pad + r, q * stride - pad + s, c]
//                                                        * w1[c, r, s]))
//   y[m][k]      = act2(bias2[k] + residual[m][k] + sum over c of middle[m][c] * w2[k][c]),     m = (n, p, q)
//
// A block owns kM pixels, a rectangle of tile_h x tile_w, and kN output channels. It walks along the channels in slices
// of a line (128 bytes: 64 channels of 16 bits, 32 of float32):
//   copies      the slice of the input pixels under the rectangle, the halo, and the slice of w2, by cp.async;
//   depthwise   a thread makes 4 columns x 4 channels of `middle` in registers and stores them, rounded, into the A
//               operand's tile (implicit_gemm_tile.cuh);
//   product     the warps add A * B to their sums in registers (implicit_gemm_math.cuh).
// `middle` is never in device memory. Everything has two buffers and a step one barrier: in step i the slice i goes
// through depthwise, i - 1 through the product, and i + 1 is on its way. Half of the warps multiply first and filter
// afterwards, so that the FMA pipes and the tensor cores work at the same time.
//
// Row m of the tile is column m % 4 of strip m / 4; strips go down the rectangle, then to the right.
//
// Assumes: x, y, w2, its bias and the residual 16-byte aligned, strides too; channels and outputs whole vectors; tile_h
// a power of two, tile_w a multiple of 4.
//
// The limit is memory, input and output once, while there are few tiles of kN: each makes the middle again.
// docs/kernels/separable.md has the count.
#pragma once

#include "depthwise_strip_nhwc.cuh"
#include "implicit_gemm.cuh"
#include "separable.h"

namespace cnnext::cuda {

/// The depthwise half as the kernel sees it. Strides in elements, but within an image offsets are in bytes, of 32 bits.
struct SeparableShape {
  const void* x;
  const void* w;     // [C][kFilter][kFilter]
  const void* bias;  // [C], or null
  int64_t x_n;
  int x_h, x_w;  // bytes
  int H, W, P, Q;
  int pad_h, pad_w;
  int tile_h, tile_w;
  int tile_h_log2;
  int tiles_h, tiles_w;
  SeparableLayout layout;
  // From one copy of all threads to the next: halo pixels, bytes of x, bytes of the halo; and what the last two are
  // more when a row has ended.
  int step_h, step_w, step_x, step_halo, wrap_x, wrap_halo;
  int halo_w_reciprocal;  // times 2^16, and 1: divides the few pixels of one copy of all threads exactly
  Activation activation;
};

/// threadIdx.x. What is computed from it is computed where it is used, instead of kept in registers through the
/// product.
__device__ __forceinline__ unsigned thread_index() {
  unsigned thread = threadIdx.x;
  forget_origin(thread);
  return thread;
}

/// Filter and bias of a slice on their way to shared memory, through registers: they are turned to floats and
/// transposed, [tap][channel], the bias as one more tap.
template <class T, int kFilter, int kThreads>
struct SeparableWeights {
  static constexpr int kTaps = kFilter * kFilter;
  static constexpr int kPitch = kLine<T> + 4;  // what lanes write together lies in different banks
  static constexpr int kOfFilter = kLine<T> * kTaps, kCount = kOfFilter + kLine<T>;
  static constexpr int kLoads = (kCount + kThreads - 1) / kThreads;
  T values[kLoads];

  /// Of the channels from `first` on; zeros after the last channel.
  __device__ __forceinline__ void read(const SeparableShape& shape, int first, int channels) {
    const T* const filter = static_cast<const T*>(shape.w) + static_cast<int64_t>(first) * kTaps;
    const T* const bias = static_cast<const T*>(shape.bias) + first;
    const int there = min(channels - first, kLine<T>);
    const unsigned thread = thread_index();
    const int biases = shape.bias == nullptr ? 0 : there;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const unsigned index = thread + i * kThreads;
      const bool of_filter = (i + 1) * kThreads <= kOfFilter || index < kOfFilter;
      const T* const from = of_filter ? filter + index : bias + (index - kOfFilter);
      round_to(values[i], 0.0f);
      if (index < static_cast<unsigned>(of_filter ? there * kTaps : kOfFilter + biases)) values[i] = *from;
    }
  }

  __device__ __forceinline__ void write(float* to) const {
    const unsigned thread = thread_index();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const unsigned index = thread + i * kThreads;
      const bool of_filter = (i + 1) * kThreads <= kOfFilter || index < kOfFilter;
      const int place = of_filter ? index % kTaps * kPitch + index / kTaps : kTaps * kPitch + (index - kOfFilter);
      if ((i + 1) * kThreads <= kCount || index < kCount) to[place] = to_accumulator(values[i]);
    }
  }
};

/// Copies slices of the halo: kThreads pieces of 16 bytes at a time, 8 to a pixel.
template <class T, int kThreads>
struct HaloLoader {
  const unsigned char* corner;  // of the halo; it may lie outside the image
  int first_h, first_w;         // its position

  __device__ __forceinline__ HaloLoader(const SeparableShape& shape, int n, int first_p, int first_q, int stride)
      : first_h(first_p * stride - shape.pad_h), first_w(first_q * stride - shape.pad_w) {
    const int64_t image = n * shape.x_n;
    corner = reinterpret_cast<const unsigned char*>(static_cast<const T*>(shape.x) + image) +
             (first_h * shape.x_h + first_w * shape.x_w);
  }

  /// Copies the channels from `first` on; zeros outside the image and after the last channel.
  __device__ __forceinline__ void copy(const SeparableShape& shape, unsigned char* halo, int first,
                                       int channels) const {
    const unsigned thread = thread_index();
    const int piece = thread % kLinePieces, pixel = thread / kLinePieces;
    const int row = pixel * shape.halo_w_reciprocal >> 16, column = pixel - row * shape.layout.halo_w;
    const int channel = first + piece * kVector<T>;
    const bool exists = channel < channels;
    int h = first_h + row, w = first_w + column;
    int offset = row * shape.x_h + column * shape.x_w + channel * static_cast<int>(sizeof(T));
    unsigned char* to = halo + row * shape.layout.row_pitch + column * kLineBytes + piece * 16;
    const int end_h = first_h + shape.layout.halo_h, end_w = first_w + shape.layout.halo_w;
#pragma unroll 1
    while (h < end_h) {
      const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(shape.H) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(shape.W);
      copy_async<16>(to, corner + offset, inside && exists);
      h += shape.step_h, w += shape.step_w, offset += shape.step_x, to += shape.step_halo;
      if (w >= end_w) w -= shape.layout.halo_w, ++h, offset += shape.wrap_x, to += shape.wrap_halo;
    }
  }
};

/// The depthwise half of one slice: halo -> tile of A. Of a slice with at most half of its channels there, only that
/// half is computed; the other half of A becomes zeros.
template <class T, class Tile, int kFilter, int kStride>
__device__ __forceinline__ void depthwise_slice(const SeparableShape& shape, const unsigned char* halo,
                                                const float* weights, unsigned char* a, int channels) {
  constexpr int kColumns = kSeparableColumns, kChannels = kSeparableChannels;
  constexpr int kLanesLog2 = sizeof(T) == 2 ? 4 : 3;
  static_assert(kLine<T> == kChannels << kLanesLog2);
  constexpr int kPitch = kLine<T> + 4, kTaps = kFilter * kFilter;
  constexpr int kInputs = (kColumns - 1) * kStride + kFilter;
  const bool half = channels <= kLine<T> / 2;
  const int lanes_log2 = half ? kLanesLog2 - 1 : kLanesLog2;

#pragma unroll 1
  for (int item = thread_index(); item < Tile::kM / kColumns << lanes_log2; item += Tile::kThreads) {
    const int strip = item >> lanes_log2, channel = (item - (strip << lanes_log2)) * kChannels;
    const int row = strip & (shape.tile_h - 1), column = (strip >> shape.tile_h_log2) * kColumns;
    const unsigned char* from = halo + row * kStride * shape.layout.row_pitch + column * kStride * kLineBytes +
                                channel * static_cast<int>(sizeof(T));
    float sums[kColumns][kChannels];
    const float4 bias = load<float4>(weights + kTaps * kPitch + channel);
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      sums[j][0] = bias.x, sums[j][1] = bias.y, sums[j][2] = bias.z, sums[j][3] = bias.w;
#pragma unroll
    for (int r = 0; r < kFilter; ++r) {
      float taps[kFilter][kChannels];
#pragma unroll
      for (int s = 0; s < kFilter; ++s) {
        const float4 tap = load<float4>(weights + (r * kFilter + s) * kPitch + channel);
        taps[s][0] = tap.x, taps[s][1] = tap.y, taps[s][2] = tap.z, taps[s][3] = tap.w;
      }
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
        Channels<T, kChannels> input;
        input.bits = load<typename Channels<T, kChannels>::Bits>(from + r * shape.layout.row_pitch + i * kLineBytes);
        float now[kChannels];
        input.unpack(now);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int s = i - j * kStride;
          if (s < 0 || s >= kFilter) continue;
#pragma unroll
          for (int v = 0; v < kChannels; ++v) sums[j][v] = fmaf(now[v], taps[s][v], sums[j][v]);
        }
      }
    }
    activate_strip(sums, shape.activation);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      unsigned char* to =
          piece_of(a, kColumns * strip + j, channel / kVector<T>) + channel % kVector<T> * static_cast<int>(sizeof(T));
      write<T, kChannels>(reinterpret_cast<T*>(to), sums[j]);
    }
  }
  if (half) {
    constexpr int kPieces = kLinePieces / 2;
    for (int i = threadIdx.x; i < Tile::kM * kPieces; i += Tile::kThreads) {
      store(piece_of(a, i / kPieces, kPieces + i % kPieces), make_uint4(0, 0, 0, 0));
    }
  }
}

/// Grid: x = column tiles (fastest, so that neighbours share the halo in L2), rectangles of the width, of the height,
/// images.
template <class T, class Math, class Tile, int kFilter, int kStride, int kMinBlocks>
__global__ void __launch_bounds__(Tile::kThreads, kMinBlocks)
    separable_nhwc_kernel(SeparableShape shape, GemmOperands op) {
  const unsigned column_tiles = (op.columns + Tile::kN - 1) / Tile::kN;
  unsigned index = blockIdx.x;
  const int first_n = static_cast<int>(index % column_tiles) * Tile::kN;
  index /= column_tiles;
  const int first_q = static_cast<int>(index % shape.tiles_w) * shape.tile_w;
  index /= shape.tiles_w;
  const int first_p = static_cast<int>(index % shape.tiles_h) * shape.tile_h;
  const int n = static_cast<int>(index / shape.tiles_h);

  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  constexpr int kHalo = Tile::kABytes + Tile::kBBytes;  // its place in a stage
  const int odd = shape.layout.stages - 1;
  const auto stage_of = [&](int slice) { return shared + (slice & odd) * shape.layout.stage_bytes; };
  const auto weights_of = [&](int slice) {
    return reinterpret_cast<float*>(stage_of(slice) + kHalo + shape.layout.halo_bytes);
  };

  const int slices = (op.depth + kLine<T> - 1) / kLine<T>, all_pieces = op.depth / kVector<T>;
  const HaloLoader<T, Tile::kThreads> loader(shape, n, first_p, first_q, kStride);
  SeparableWeights<T, kFilter, Tile::kThreads> weights;
  // What step `step` needs: the halo for depthwise, and w2 for the product, which is a step behind.
  const auto copy_for = [&](int step) {
    if (step < slices) loader.copy(shape, stage_of(step) + kHalo, step * kLine<T>, op.depth);
    if (step > 0 && step <= slices) {
      copy_filter_lines<T, Tile>(op, stage_of(step - 1) + Tile::kABytes, static_cast<const T*>(op.filter), first_n,
                                 step - 1, all_pieces);
    }
    copy_async_commit();
  };

  copy_for(0);
  copy_for(1);
  weights.read(shape, 0, op.depth);
  weights.write(weights_of(0));

  typename Math::template Warp<Tile::kWarpM, Tile::kWarpN> warp;
  const int warp_index = threadIdx.x / 32;
  const int warp_m = warp_index / Tile::kWarpsN * Tile::kWarpM, warp_n = warp_index % Tile::kWarpsN * Tile::kWarpN;
  const int multiplies_in = warp_index / 4 % 2;  // of the two phases; the four warps before run on the same schedulers
#pragma unroll 1
  for (int step = 0; step <= slices; ++step) {
    if (step == 0) {
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    // The step's copies and the slice's weights are there for all, and all are done with the step before.
    __syncthreads();
    if (step > 0) copy_for(step + 1);
    const bool has_next = step + 1 < slices;
    if (has_next) weights.read(shape, (step + 1) * kLine<T>, op.depth);
#pragma unroll 1
    for (int phase = 0; phase < 2; ++phase) {
      if (phase == multiplies_in) {
        if (step == 0) continue;
        unsigned char* const tiles = stage_of(step - 1);
        warp.template multiply<TileOrder::kLines, TileOrder::kLines>(tiles, warp_m, tiles + Tile::kABytes, warp_n);
      } else if (step < slices) {
        unsigned char* const stage = stage_of(step);
        depthwise_slice<T, Tile, kFilter, kStride>(shape, stage + kHalo, weights_of(step), stage,
                                                   op.depth - step * kLine<T>);
      }
    }
    if (has_next) weights.write(weights_of(step + 1));
  }
  __syncthreads();

  const int64_t image = n * op.output_n;
  const int output_h = static_cast<int>(op.output_h), output_w = static_cast<int>(op.output_w);
  store_result<T, Tile, true>(
      op, shared, first_n, op.columns - first_n,
      [&](auto f) { warp.visit([&](int m, int k, auto... values) { f(warp_m + m, warp_n + k, values...); }); },
      [&](int m) {
        const int strip = m / kSeparableColumns;
        const int p = first_p + (strip & (shape.tile_h - 1));
        const int q = first_q + (strip >> shape.tile_h_log2) * kSeparableColumns + m % kSeparableColumns;
        return p < shape.P && q < shape.Q ? image + p * output_h + q * output_w : kNoPixel;
      });
}

}  // namespace cnnext::cuda
