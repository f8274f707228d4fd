// What the channels_last depthwise forward and input-gradient kernels share on the device: where a thread's strip lies,
// vectors of channels, the filter in shared memory, the epilogue. Their host side is depthwise_strip_nhwc.h.
#pragma once

#include <type_traits>

#include "depthwise_strip_nhwc.h"
#include "element.h"

namespace cnnext::cuda {

/// A tensor's image: its size, and the strides in elements. A channel's stride is 1.
struct Image {
  int rows, columns;
  int64_t image_stride;
  int row_stride, column_stride;
};

/// The problem as a strip kernel sees it. Its input and output are x and y, or dy and dx.
struct StripShape {
  Image in, out;
  int channels;
  int pad_h, pad_w, dilation_h, dilation_w;
  int tile_h;
  int strips, tiles;                 // of one residue: along a row, down a column
  int channel_blocks, strip_blocks;  // of the grid
  int strip_count, band_count;
};

inline StripShape make_strip_shape(const ConvParams& params, bool transposed, const StripAxis& rows,
                                   const StripAxis& columns, const LaunchConfig& config) {
  const auto narrow = [](int64_t value) { return static_cast<int>(value); };
  const auto image = [&](int64_t height, int64_t width, const Strides4& strides) {
    return Image{narrow(height), narrow(width), strides.n, narrow(strides.h), narrow(strides.w)};
  };
  const Image x = image(params.H, params.W, params.x_strides), y = image(params.P, params.Q, params.y_strides);
  const int strips = narrow(ceil_div(columns.length, config.tile_w));
  const int tiles = narrow(ceil_div(rows.length, config.tile_h));
  const int strip_count = narrow(columns.classes * strips);
  return {transposed ? y : x,
          transposed ? x : y,
          narrow(params.C),
          narrow(params.pad_h),
          narrow(params.pad_w),
          narrow(params.dilation_h),
          narrow(params.dilation_w),
          config.tile_h,
          strips,
          tiles,
          narrow(ceil_div(ceil_div(params.C, config.vector), config.block[0])),
          narrow(ceil_div(strip_count, config.block[1])),
          strip_count,
          narrow(params.N * rows.classes * tiles)};
}

/// Which strip is the thread's.
struct StripPlace {
  int block_channel, channel;  // the first of the block, the first of the thread
  int strip, band;             // counted over all residues, and all images
  bool exists;                 // the last blocks reach beyond the problem
};

template <int kVector>
__device__ __forceinline__ StripPlace find_strip(const StripShape& shape) {
  unsigned block = blockIdx.x;
  const int block_channel = block % shape.channel_blocks * blockDim.x * kVector;
  block /= shape.channel_blocks;
  const int channel = block_channel + threadIdx.x * kVector;
  const int strip = block % shape.strip_blocks * blockDim.y + threadIdx.y;
  const int band = block / shape.strip_blocks * blockDim.z + threadIdx.z;
  return {block_channel, channel, strip, band,
          channel < shape.channels && strip < shape.strip_count && band < shape.band_count};
}

/// Bit i says whether column first + i * step, i < count, is one of 0 ... columns - 1.
__device__ __forceinline__ unsigned column_mask(int first, int step, int count, int columns) {
  const int begin = min((max(-first, 0) + step - 1) / step, count);
  const int end = min((max(columns - first, 0) + step - 1) / step, count);
  return ((1u << end) - 1) & ~((1u << begin) - 1);
}

/// The address `times` steps of `bytes` further.
template <class T>
__device__ __forceinline__ T* advance(T* p, unsigned bytes, int times) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  // NOTE: the compiler would widen `bytes` once for all steps and then multiply in 64 bits, in three instructions or
  // more; forgotten, it is one that multiplies 32 bits and adds to 64.
  forget_origin(bytes);
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(p) + static_cast<uint64_t>(bytes) * times);
}

/// The built-in type of `kBytes` bytes.
template <int kBytes>
struct BitsOf;
template <>
struct BitsOf<2> {
  using type = unsigned short;
};
template <>
struct BitsOf<4> {
  using type = unsigned;
};
template <>
struct BitsOf<8> {
  using type = uint2;
};
template <>
struct BitsOf<16> {
  using type = uint4;
};

/// kVector neighbouring channels of a pixel, as they lie in memory.
template <class T, int kVector>
struct Channels {
  using Bits = typename BitsOf<kVector * sizeof(T)>::type;
  static constexpr int kWords = (kVector * sizeof(T) + 3) / 4;
  Bits bits;

  __device__ __forceinline__ void clear() { bits = Bits(); }
  __device__ __forceinline__ void read(const T* p) { bits = load_global<Bits>(p); }

  __device__ __forceinline__ void unpack(float (&values)[kVector]) const {
    if constexpr (kVector == 1) {
      values[0] = to_accumulator(bit_cast<T>(bits));
    } else if constexpr (sizeof(T) == 4) {
      memcpy(values, &bits, sizeof(bits));
    } else {
      unsigned words[kWords];
      memcpy(words, &bits, sizeof(bits));
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const float2 pair = unpack_pair(words[i], T());
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }
};

/// Rounds to nearest even and writes kVector neighbouring channels.
template <class T, int kVector>
__device__ __forceinline__ void write(T* p, const float (&values)[kVector]) {
  typename Channels<T, kVector>::Bits bits;
  if constexpr (kVector == 1) {
    T element;
    round_to(element, values[0]);
    memcpy(static_cast<void*>(&bits), &element, sizeof(bits));
  } else if constexpr (sizeof(T) == 4) {
    memcpy(&bits, values, sizeof(bits));
  } else {
    unsigned words[kVector / 2];
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) words[i] = pack_pair(values[2 * i], values[2 * i + 1], T());
    memcpy(&bits, words, sizeof(bits));
  }
  store(p, bits);
}

/// The filters of the block's channels in shared memory, as floats. A thread reads a row of its channels' filters at a
/// time, [s][v], in pieces; a piece of all lanes is one run of memory, and strips of the same lane read the same.
template <class T, int kFilter, int kVector>
struct StagedFilter {
  static constexpr int kTaps = kFilter * kFilter;
  static constexpr int kRow = kFilter * kVector;  // floats of a lane in a row
  // With larger pieces a 7x7 kernel runs out of registers.
  static constexpr int kPiece = kFilter == 7 ? kVector : 4;
  static constexpr int kPieces = (kRow + kPiece - 1) / kPiece;
  static constexpr int kPitch =
      (kStripLanes + 1) * kPiece;  // one lane more, so that the pieces begin in different banks
  static constexpr int kSize = kFilter * kPieces * kPitch;
  const float* own;  // of the thread's lane

  /// Where a lane's float i of row r is, s * kVector + v.
  static __device__ __forceinline__ int offset(int r, int i) {
    return (r * kPieces + i / kPiece) * kPitch + i % kPiece;
  }

  /// Copies the filters of channels `first` to `channels` - 1, as many as the block has; ends with a barrier.
  static __device__ __forceinline__ StagedFilter stage(float* smem, const T* w, int first, int channels, bool flip) {
    const T* const block_w = w + static_cast<int64_t>(first) * kTaps;
    const int count = min(static_cast<int>(blockDim.x) * kVector, channels - first) * kTaps;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    for (int i = thread; i < count; i += threads) {
      const int channel = i / kTaps, lane = channel / kVector, v = channel % kVector;
      const int tap = flip ? kTaps - 1 - i % kTaps : i % kTaps;
      smem[offset(tap / kFilter, tap % kFilter * kVector + v) + lane * kPiece] = to_accumulator(block_w[i]);
    }
    __syncthreads();
    return {smem + threadIdx.x * kPiece};
  }

  __device__ __forceinline__ float weight(int tap, int v) const {
    return own[offset(tap / kFilter, tap % kFilter * kVector + v)];
  }

  __device__ __forceinline__ void read_row(int r, float (&taps)[kFilter][kVector]) const {
    float* const flat = &taps[0][0];
#pragma unroll
    for (int i = 0; i < kRow; i += kPiece) {
      const float* const piece = own + offset(r, i);
      const int count = kRow - i < kPiece ? kRow - i : kPiece;
      if (count == 4) read_floats<float4>(flat + i, piece);
      if (count == 2) read_floats<float2>(flat + i, piece);
      if (count % 2 == 1) {
#pragma unroll
        for (int k = 0; k < count; ++k) flat[i + k] = piece[k];
      }
    }
  }

  template <class Floats>
  static __device__ __forceinline__ void read_floats(float* values, const float* shared) {
    const Floats floats = load<Floats>(shared);
    memcpy(values, &floats, sizeof(floats));
  }

  /// Whether none of the thread's weights is infinite or NaN.
  __device__ __forceinline__ bool is_finite() const {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kFilter; ++r) {
      float taps[kFilter][kVector];
      read_row(r, taps);
#pragma unroll
      for (int s = 0; s < kFilter; ++s) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) sum += taps[s][v] * 0.0f;
      }
    }
    return sum == 0;
  }
};

/// activate_all for a kernel that needs its code small: a costly activation is there once for kVector values, and the
/// values pass by in a ring.
template <int kWidth, int kVector>
__device__ __forceinline__ void activate_strip(float (&values)[kWidth][kVector], Activation activation) {
  const auto all = [&](auto function) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) values[j][v] = function(values[j][v]);
    }
  };
  const auto ring = [&](auto function) {
#pragma unroll 1
    for (int turn = 0; turn < kWidth; ++turn) {
      float front[kVector];
#pragma unroll
      for (int v = 0; v < kVector; ++v) front[v] = function(values[0][v]);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) values[j][v] = j + 1 < kWidth ? values[j + 1][v] : front[v];
      }
    }
  };
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kRelu: return all([](float x) { return activate(x, Activation::kRelu); });
    case Activation::kRelu6: return all([](float x) { return activate(x, Activation::kRelu6); });
    case Activation::kSilu: return ring([](float x) { return activate(x, Activation::kSilu); });
    case Activation::kHardswish: return ring([](float x) { return activate(x, Activation::kHardswish); });
    default: return ring([=](float x) { return activate(x, activation); });
  }
}

/// Calls function(T(), constant filter, constant narrow) for a strip problem.
template <class Function>
void dispatch_strip(const ConvParams& params, bool narrow, Function function) {
  const auto with_filter = [&](auto element, auto is_narrow) {
    switch (params.R) {
      case 3: return function(element, std::integral_constant<int, 3>(), is_narrow);
      case 5: return function(element, std::integral_constant<int, 5>(), is_narrow);
      default: return function(element, std::integral_constant<int, 7>(), is_narrow);
    }
  };
  const auto with_width = [&](auto element) {
    return narrow ? with_filter(element, std::true_type()) : with_filter(element, std::false_type());
  };
  switch (params.dtype) {
    case DType::kFloat32: return with_width(float());
    case DType::kFloat16: return with_width(__half());
    default: return with_width(__nv_bfloat16());
  }
}

}  // namespace cnnext::cuda
