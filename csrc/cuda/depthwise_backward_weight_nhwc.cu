// Depthwise convolution, gradient with respect to the filter and the bias, channels last; the first of two stages.
//
//   dw[k, r, s] = sum over n, p, q of dy[n, p, q, k]
//                                     * x[n, p * stride - pad_h + r * dilation_h, q * stride - pad_w + s, k]
//   dbias[k]    = sum over n, p, q of dy[n, p, q, k],   x = 0 outside the image
//
// A block owns a slab of channels, `lanes` vectors of 16 bytes, and one part of the list of tiles (n, rows, columns).
// It walks down its part: cp.async brings tile_h x tile_w pixels of dy and the pixels of x under them, with the padding
// as zeros, into one of several stages of shared memory while the threads work on another.
//
// Thread (lane, r, group) owns a vector of channels and the filter row r, in S x vector float32 accumulators. Of each
// tile it takes every so manyeth strip, up to 14 elements of a row of dy, and slides along it: an element of x is
// loaded and converted once and meets S elements of dy from a window in registers. Threads of the same strip share it
// through shared memory. At its end the block adds up its groups, in order, and writes the sums to the workspace
// [part][R * S + 1][K], which depthwise_backward_weight_reduce adds up.
//
// Assumes what plan_depthwise_backward_weight_nhwc checks: K = C, dilation_w = 1, equal strides of 1 or 2, S of 3, 5 or
// 7, channels and pixels in whole vectors, tiles within 32-bit offsets.
// Limit: memory, x and dy read once, up to about 5 x 5; docs/kernels/depthwise_backward_weight_nhwc.md has the count.
#include "depthwise_backward_weight_nhwc.h"

#include <algorithm>

#include "element.h"
#include "kernels.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

using namespace backward_weight_nhwc;

/// A rectangle of pixels that the threads copy, out of an image of H x W pixels, and out of the next images.
struct Rectangle {
  int rows, columns;
  int H, W;
  int64_t stride_n;
  int stride_h, stride_w;
  int columns_at_once, rows_at_once;  // pixels that all threads take in one step
  int image_bytes;                    // of the rectangle in one image, in shared memory
};

/// The kernel's arguments besides pointers.
struct Geometry {
  Rectangle x_pixels, dy_pixels;
  int64_t K;
  int part_tiles, longer_parts;  // tiles of a part; the first parts have one more
  int N, P, Q, R;
  int pad_h, pad_w, dilation_h;
  int images, tile_h, tile_w;  // of a tile
  int tiles_h, tiles_w;        // in an image
  int strip, strips;
  int stages, x_bytes, stage_bytes;
  int bias_offset;  // of the sums of dy in shared memory
  bool with_bias;
};

/// A tile of the list: its images start at n * images; columns run fastest.
struct TileIndex {
  int n, row, column;

  __device__ TileIndex(const Geometry& g, int index) : n(index), row(0), column(0) {
    if (g.tiles_w > 1) n /= g.tiles_w, column = index % g.tiles_w;
    if (g.tiles_h > 1) row = n % g.tiles_h, n /= g.tiles_h;
  }

  __device__ void advance(const Geometry& g) {
    if (++column < g.tiles_w) return;
    column = 0;
    if (++row < g.tiles_h) return;
    row = 0, ++n;
  }
};

/// A thread's first pixel in a rectangle; it walks down columns. `row` is past the end where the thread has no pixel.
struct Place {
  int row, column;

  __device__ Place(const Rectangle& pixels, int worker)
      : row(worker / pixels.columns_at_once), column(worker % pixels.columns_at_once) {
    if (row >= pixels.rows_at_once) column = pixels.columns;
  }
};

/// Starts the copy of a rectangle of pixels of some images to `shared`, dense there, which points at this thread's
/// vector of channels in the first pixel; `first` is the same in the tensor, and may lie outside the image. That pixel
/// is (top, left) of the image; pixels outside become zeros.
template <class T>
__device__ __forceinline__ void copy_pixels(const Rectangle& pixels, const Place& place, unsigned char* shared,
                                            const T* first, int images, int top, int left, int pixel_bytes) {
  // Pointers that move, rather than a base and an offset: nvcc would compute the base anew for every pixel.
  const int step = pixels.rows_at_once * pixels.stride_h;
  const int step_bytes = pixels.rows_at_once * pixels.columns * pixel_bytes;
  for (int column = place.column; column < pixels.columns; column += pixels.columns_at_once) {
    const bool column_inside = static_cast<unsigned>(left + column) < static_cast<unsigned>(pixels.W);
    const unsigned inside_rows = column_inside ? pixels.H : 0;
    const T* image = first + (place.row * pixels.stride_h + column * pixels.stride_w);
    unsigned char* image_to = shared + (place.row * pixels.columns + column) * pixel_bytes;
    for (int i = 0; i < images; ++i, image += pixels.stride_n, image_to += pixels.image_bytes) {
      const T* from = image;
      unsigned char* to = image_to;
      for (int h = top + place.row; h < top + pixels.rows; h += pixels.rows_at_once, from += step, to += step_bytes) {
        copy_async<kAccessBytes>(to, from, static_cast<unsigned>(h) < inside_rows);
      }
    }
  }
}

/// One step along a row: kStride new elements of x, one of dy, and their products. The step's first column of x is
/// column kFirst of the strip modulo kS.
template <class T, int kS, int kStride>
__device__ __forceinline__ void add_element(float (&sums)[kS][kVector<T>], float (&window)[kS][kVector<T>], int first,
                                            const unsigned char*& x, const unsigned char*& dy, int pixel_bytes) {
#pragma unroll
  for (int s = kS - kStride; s < kS; ++s, x += pixel_bytes) unpack<T>(load<uint4>(x), window[(first + s) % kS]);
  float dy_values[kVector<T>];
  unpack<T>(load<uint4>(dy), dy_values);
  dy += pixel_bytes;
#pragma unroll
  for (int s = 0; s < kS; ++s) {
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) sums[s][v] += window[(first + s) % kS][v] * dy_values[v];
  }
}

/// Adds to `sums` the products of a strip: `x` and `dy` point at this thread's vector in the first elements of shared
/// memory that are used, and pixels of a row follow each other at `pixel_bytes`.
template <class T, int kS, int kStride>
__device__ __forceinline__ void add_strip(float (&sums)[kS][kVector<T>], const unsigned char* x,
                                          const unsigned char* dy, int pixel_bytes, int length) {
  if (length <= 0) return;
  // Column c of x, counted from the strip's first, lies in window[c % kS]: nothing moves when the window slides, and
  // after kS steps it is where it was.
  float window[kS][kVector<T>];
#pragma unroll
  for (int s = 0; s < kS - kStride; ++s, x += pixel_bytes) unpack<T>(load<uint4>(x), window[s]);
  int left = length;
  for (; left >= kS; left -= kS) {
#pragma unroll
    for (int i = 0; i < kS; ++i) {
      add_element<T, kS, kStride>(sums, window, i * kStride, x, dy, pixel_bytes);
    }
  }
#pragma unroll
  for (int i = 0; i < kS - 1; ++i) {
    if (i < left) add_element<T, kS, kStride>(sums, window, i * kStride, x, dy, pixel_bytes);
  }
}

/// Reads or writes kCount floats of shared memory, 16 bytes at a time.
template <int kCount>
__device__ __forceinline__ void read_sums(const float* smem, float (&sums)[kCount]) {
#pragma unroll
  for (int v = 0; v < kCount; v += 4) {
    const float4 four = load<float4>(smem + v);
    sums[v] = four.x, sums[v + 1] = four.y, sums[v + 2] = four.z, sums[v + 3] = four.w;
  }
}
template <int kCount>
__device__ __forceinline__ void write_sums(float* smem, const float (&sums)[kCount]) {
#pragma unroll
  for (int v = 0; v < kCount; v += 4) {
    store<float4>(smem + v, make_float4(sums[v], sums[v + 1], sums[v + 2], sums[v + 3]));
  }
}

/// Adds a strip of dy to the sums in shared memory.
template <class T>
__device__ __forceinline__ void add_dy(float* smem_sums, const unsigned char* dy, int pixel_bytes, int length) {
  float sums[kVector<T>], values[kVector<T>];
  read_sums(smem_sums, sums);
#pragma unroll 1
  for (int q = 0; q < length; ++q, dy += pixel_bytes) {
    unpack<T>(load<uint4>(dy), values);
#pragma unroll
    for (int v = 0; v < kVector<T>; ++v) sums[v] += values[v];
  }
  write_sums(smem_sums, sums);
}

template <class T, int kS, int kStride>
__global__ void __launch_bounds__(max_threads(kS), 2)
    depthwise_backward_weight_nhwc_kernel(Geometry g, const T* __restrict__ dy, const T* __restrict__ x,
                                          float* __restrict__ workspace) {
  constexpr int kV = kVector<T>;
  CNNEXT_DYNAMIC_SHARED(unsigned char, smem_tiles);
  const int lanes = blockDim.x;
  const int slab = blockIdx.x, part = blockIdx.y;
  const int64_t first_channel = (int64_t{slab} * lanes + threadIdx.x) * kV;
  const bool active = first_channel < g.K;
  const int pixel_bytes = lanes * kAccessBytes;

  const int count = g.part_tiles + (part < g.longer_parts);
  TileIndex tile(g, part * g.part_tiles + min(part, g.longer_parts));
  TileIndex next = tile;
  const int worker = threadIdx.z * blockDim.y + threadIdx.y;
  const int workers = blockDim.y * blockDim.z;
  const Place x_place(g.x_pixels, worker), dy_place(g.dy_pixels, worker);
  x += first_channel;
  dy += first_channel;
  int copied = 0, copy_stage = 0;
  // Starts the copy of the next tile, if there is one; closes a group of copies in either case.
  const auto copy_next = [&] {
    if (copied < count && active) {
      unsigned char* const stage = smem_tiles + copy_stage * g.stage_bytes + threadIdx.x * kAccessBytes;
      const int n = next.n * g.images, p = next.row * g.tile_h, q = next.column * g.tile_w;
      const int h = p * kStride - g.pad_h, w = q * kStride - g.pad_w;
      const int images = min(g.images, g.N - n);
      copy_pixels(g.x_pixels, x_place, stage,
                  x + (n * g.x_pixels.stride_n + (h * g.x_pixels.stride_h + w * g.x_pixels.stride_w)), images, h, w,
                  pixel_bytes);
      copy_pixels(g.dy_pixels, dy_place, stage + g.x_bytes,
                  dy + (n * g.dy_pixels.stride_n + (p * g.dy_pixels.stride_h + q * g.dy_pixels.stride_w)), images, p, q,
                  pixel_bytes);
    }
    copy_async_commit();
    next.advance(g);
    ++copied;
    if (++copy_stage == g.stages) copy_stage = 0;
  };

  float sums[kS][kV] = {};
  // Sums of dy are rarely asked for, so they take no registers.
  float* const bias_sums = reinterpret_cast<float*>(smem_tiles + g.bias_offset) + (worker * lanes + threadIdx.x) * kV;
  if (g.with_bias) write_sums<kV>(bias_sums, {});
  const int r = threadIdx.y;
  const int own_p = threadIdx.z / g.strips;
  const int own_q = threadIdx.z % g.strips * g.strip;
  const int rows_at_once = blockDim.z / g.strips;
  for (int i = 1; i < g.stages; ++i) copy_next();
  int stage = 0;
  for (int i = 0; i < count; ++i, tile.advance(g)) {
    // All groups but those of the stages - 2 tiles after this one have landed; then every thread is done with the stage
    // that is filled next.
    if (g.stages == 2) {
      copy_async_wait<0>();
    } else if (g.stages == 3) {
      copy_async_wait<1>();
    } else {
      copy_async_wait<2>();
    }
    __syncthreads();
    copy_next();

    const unsigned char* const x_tile = smem_tiles + stage * g.stage_bytes + threadIdx.x * kAccessBytes;
    if (++stage == g.stages) stage = 0;
    const unsigned char* const dy_tile = x_tile + g.x_bytes;
    const int rows = min(g.tile_h, g.P - tile.row * g.tile_h);
    const int columns = min(g.tile_w, g.Q - tile.column * g.tile_w);
    // Thread group z owns strip z % strips of every so manyeth row.
    const int length = active ? min(g.strip, columns - own_q) : 0;
    const unsigned char* x_strip = x_tile + (r * g.dilation_h * g.x_pixels.columns + own_q * kStride) * pixel_bytes;
    const unsigned char* dy_strip = dy_tile + own_q * pixel_bytes;
    const int images = min(g.images, g.N - tile.n * g.images);
    for (int image = 0; image < images; ++image) {
      for (int p = own_p; p < rows; p += rows_at_once) {
        add_strip<T, kS, kStride>(sums, x_strip + p * kStride * g.x_pixels.columns * pixel_bytes,
                                  dy_strip + p * g.tile_w * pixel_bytes, pixel_bytes, length);
      }
      if (g.with_bias) {
        // Filter row r takes every R-th of these rows.
#pragma unroll 1
        for (int p = own_p + r * rows_at_once; p < rows; p += g.R * rows_at_once) {
          add_dy<T>(bias_sums, dy_strip + p * g.tile_w * pixel_bytes, pixel_bytes, length);
        }
      }
      x_strip += g.x_pixels.image_bytes;
      dy_strip += g.dy_pixels.image_bytes;
    }
  }
  copy_async_wait<0>();
  __syncthreads();

  // The groups' sums, [group][R * S][channels of the slab], where the tiles were.
  float* const smem_sums = reinterpret_cast<float*>(smem_tiles);
  const int taps = g.R * kS;
  const int channels = lanes * kV;
#pragma unroll
  for (int s = 0; s < kS; ++s) {
    write_sums(smem_sums + ((threadIdx.z * g.R + r) * kS + s) * channels + threadIdx.x * kV, sums[s]);
  }
  __syncthreads();
  const auto add_up = [&](const float* summands, int count, int distance) {
    float sum = 0;
    for (int i = 0; i < count; ++i) sum += summands[i * distance];
    return sum;
  };
  const int written = (g.with_bias ? taps + 1 : taps) * channels;
  for (int i = worker * lanes + threadIdx.x; i < written; i += workers * lanes) {
    const int tap = i / channels, channel = i % channels;
    const int64_t k = int64_t{slab} * channels + channel;
    if (k >= g.K) continue;
    workspace[(int64_t{part} * (taps + 1) + tap) * g.K + k] =
        tap < taps ? add_up(smem_sums + i, blockDim.z, taps * channels)
                   : add_up(reinterpret_cast<float*>(smem_tiles + g.bias_offset) + channel, workers, channels);
  }
}

Rectangle make_rectangle(int rows, int columns, int64_t H, int64_t W, const Strides4& strides, int workers,
                         int pixel_bytes) {
  Rectangle pixels;
  pixels.rows = rows, pixels.columns = columns;
  pixels.H = static_cast<int>(H), pixels.W = static_cast<int>(W);
  pixels.stride_n = strides.n;
  pixels.stride_h = static_cast<int>(strides.h), pixels.stride_w = static_cast<int>(strides.w);
  pixels.columns_at_once = std::min(columns, workers);
  pixels.rows_at_once = workers / pixels.columns_at_once;
  pixels.image_bytes = rows * columns * pixel_bytes;
  return pixels;
}

Geometry make_geometry(const ConvParams& params, const LaunchConfig& config, bool with_bias) {
  const int lanes = config.block[0];
  const Tile tile(params, config.planes, config.tile_h, config.tile_w);
  const int workers = config.block[1] * config.block[2];
  const int pixel_bytes = lanes * kAccessBytes;
  Geometry g;
  g.x_pixels = make_rectangle(tile.x_rows, tile.x_columns, params.H, params.W, params.x_strides, workers, pixel_bytes);
  g.dy_pixels = make_rectangle(tile.tile_h, tile.tile_w, params.P, params.Q, params.y_strides, workers, pixel_bytes);
  g.K = params.K;
  g.part_tiles = static_cast<int>(tile.count(params) / config.parts);
  g.longer_parts = static_cast<int>(tile.count(params) % config.parts);
  g.N = static_cast<int>(params.N), g.P = static_cast<int>(params.P), g.Q = static_cast<int>(params.Q);
  g.R = static_cast<int>(params.R);
  g.pad_h = static_cast<int>(params.pad_h), g.pad_w = static_cast<int>(params.pad_w);
  g.dilation_h = static_cast<int>(params.dilation_h);
  g.images = tile.images, g.tile_h = tile.tile_h, g.tile_w = tile.tile_w;
  g.tiles_h = static_cast<int>(ceil_div(params.P, tile.tile_h));
  g.tiles_w = static_cast<int>(ceil_div(params.Q, tile.tile_w));
  g.strip = tile.strip, g.strips = tile.strips;
  g.bias_offset = config.shared_bytes - bias_bytes(params, lanes * workers);
  g.stages = stages(g.bias_offset, tile.stage_bytes(lanes));
  g.x_bytes = static_cast<int>(tile.x_bytes(lanes));
  g.stage_bytes = static_cast<int>(tile.stage_bytes(lanes));
  g.with_bias = with_bias;
  return g;
}

template <class T>
void run(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x, void* dw, void* dbias,
         void* workspace, Stream stream) {
  const auto launch_kernel = [&](auto kernel) {
    launch(kernel, dim3(static_cast<unsigned>(config.grid[0]), static_cast<unsigned>(config.grid[1])),
           dim3(config.block[0], config.block[1], config.block[2]), config.shared_bytes, stream,
           make_geometry(params, config, dbias != nullptr), static_cast<const T*>(dy), static_cast<const T*>(x),
           static_cast<float*>(workspace));
  };
  const auto with_filter = [&](auto stride_1, auto stride_2) {
    params.stride_w == 1 ? launch_kernel(stride_1) : launch_kernel(stride_2);
  };
  switch (params.S) {
    case 3:
      with_filter(depthwise_backward_weight_nhwc_kernel<T, 3, 1>, depthwise_backward_weight_nhwc_kernel<T, 3, 2>);
      break;
    case 5:
      with_filter(depthwise_backward_weight_nhwc_kernel<T, 5, 1>, depthwise_backward_weight_nhwc_kernel<T, 5, 2>);
      break;
    default:  // the planner lists no other width
      with_filter(depthwise_backward_weight_nhwc_kernel<T, 7, 1>, depthwise_backward_weight_nhwc_kernel<T, 7, 2>);
  }
  depthwise_backward_weight_reduce(params, config.parts, workspace, dw, dbias, stream);
}

}  // namespace

void depthwise_backward_weight_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x,
                                    void* dw, void* dbias, void* workspace, Stream stream) {
  switch (params.dtype) {
    case DType::kFloat32: return run<float>(params, config, dy, x, dw, dbias, workspace, stream);
    case DType::kFloat16: return run<__half>(params, config, dy, x, dw, dbias, workspace, stream);
    default: return run<__nv_bfloat16>(params, config, dy, x, dw, dbias, workspace, stream);
  }
}

}  // namespace cnnext::cuda
