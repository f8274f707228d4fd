// What a launch of the grouped channels_last kernels works on, and how a block's sums become outputs.
#pragma once

#include "element.h"
#include "implicit_gemm_tile.cuh"
#include "portability.h"

namespace cnnext::cuda {

/// What a launch works on. Strides in elements.
struct GemmOperands {
  const void* source;
  const void* filter;
  const void* bias;      // [groups * columns], or null
  const void* residual;  // laid out like the output, or null; only kernels whose epilogue is told to look at it do
  void* output;
  float* sums;  // [parts] of dense outputs in float32 instead of `output`, or null
  int64_t source_n, source_h, source_w;
  int64_t output_n, output_h, output_w;
  int64_t filter_group, filter_row, filter_h, filter_w;  // a row is a column n, or a channel k if it is transposed
  int64_t part_elements;                                 // of `sums`
  int parts;                                             // of the reduced dimension
  int images;
  int depth, columns;  // channels of a group: reduced, and of the output
  Activation activation;
};

/// Offset of an output pixel's first channel of all.
__device__ __forceinline__ int64_t output_offset(const GemmOperands& op, const TapAxis& axis_h, const TapAxis& axis_w,
                                                 const Pixel& p) {
  return p.n * op.output_n + (axis_h.out_first + p.i * axis_h.out_step) * op.output_h +
         (axis_w.out_first + p.j * axis_w.out_step) * op.output_w;
}

constexpr int64_t kNoPixel = -1;

/// The first `count` of a vector's channels; element by element, since a bias may begin anywhere and end within a
/// vector.
template <class T>
__device__ __forceinline__ void load_bias(const T* bias, int count, float (&values)[kVector<T>]) {
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if (i < count) values[i] = to_accumulator(bias[i]);
  }
}

/// The epilogue of a block with Tile::kM pixels and Tile::kN channels: the sums go to shared memory, from there with
/// bias and activation to the output, 16 bytes a thread; or as they are to a part of `op.sums`.
///
/// `channel`: the block's first output channel; `channels`: how many there are from it on, in memory rounded up to a
/// vector. `visit(f)` calls f(m, n, value) or f(m, n, value, next) for the sums of the thread, `pixel(m)` gives a
/// pixel's offset or kNoPixel. With kResidual, op.residual is added ahead of the activation.
template <class T, class Tile, bool kResidual = false, class Visit, class PixelOffset>
__device__ __forceinline__ void store_result(const GemmOperands& op, unsigned char* shared, int64_t channel,
                                             int channels, const Visit& visit, const PixelOffset& pixel, int part = 0) {
  auto* result = reinterpret_cast<float*>(shared);  // [kM][kResultPitch]
  visit([&](int m, int n, auto... values) {
    float* to = result + m * Tile::kResultPitch + n;
    if constexpr (sizeof...(values) == 2) {
      store(to, make_float2(values...));
    } else {
      ((*to = values), ...);
    }
  });
  __syncthreads();

  constexpr int kVectors = Tile::kN / kVector<T>;  // of a row of the block
  static_assert(Tile::kThreads % kVectors == 0);   // so that a thread keeps its channels
  const int column = threadIdx.x % kVectors * kVector<T>;
  if (column >= channels) return;
  float bias[kVector<T>] = {};
  load_bias(static_cast<const T*>(op.bias) + channel + column, op.bias != nullptr ? channels - column : 0, bias);

  for (int row = threadIdx.x / kVectors; row < Tile::kM; row += Tile::kThreads / kVectors) {
    const int64_t offset = pixel(row);
    if (offset == kNoPixel) continue;
    const int64_t at = offset + channel + column;
    if (op.sums != nullptr) {
      float* const to = op.sums + part * op.part_elements + at;
#pragma unroll
      for (int i = 0; i < kVector<T>; i += 4) {
        store(to + i, load<float4>(result + row * Tile::kResultPitch + column + i));
      }
      continue;
    }
    float values[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; i += 4) {
      const float4 sums = load<float4>(result + row * Tile::kResultPitch + column + i);
      values[i] = sums.x + bias[i], values[i + 1] = sums.y + bias[i + 1];
      values[i + 2] = sums.z + bias[i + 2], values[i + 3] = sums.w + bias[i + 3];
    }
    if (kResidual && op.residual != nullptr) {
      float residual[kVector<T>];
      unpack<T>(load_global<uint4>(static_cast<const T*>(op.residual) + at), residual);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) values[i] += residual[i];
    }
    activate_all(values, op.activation);
    store_global(static_cast<T*>(op.output) + at, pack<T>(values));
  }
}

}  // namespace cnnext::cuda
