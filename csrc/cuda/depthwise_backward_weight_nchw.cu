// Depthwise convolution, gradient with respect to the filter and the bias, channels first; the first of two stages.
//
//   dw[k, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, k, p * stride - pad_h + r, q * stride - pad_w + s]
//   dbias[k]    = sum over n, p, q of dy[n, k, p, q],   x = 0 outside the image
//
// A block owns a group of `planes` channels and one part of the list of its tiles (images, rows). It walks down its
// part: a tile of dy and the rows of x under it are runs of memory, which cp.async brings into one of several stages of
// shared memory while the threads work on another. Shared memory keeps the pitch of global memory.
//
// A thread owns kColumns neighbouring columns, which divide the row (and more of them, if the row is longer than the
// block is wide), of one plane, and an equal share of the tile's rows and images. It slides down its columns with S
// rows of x in registers: of each new row of x it loads and converts kColumns + S - 1 elements (at stride 1), which
// then meet kColumns elements of dy in S rows. It keeps all S x S sums and the sum of dy in float32 registers. At its
// end the block adds up its threads' sums in a fixed order and writes them to the workspace [part][S * S + 1][K], which
// depthwise_backward_weight_reduce adds up.
//
// Assumes what plan_depthwise_backward_weight_nchw checks: K = C, no dilation, equal strides of 1 or 2, a square filter
// of 3, 5 or 7, planes within 32-bit offsets.
// Limit: memory, x and dy read once, for 3 x 3 on planes of 14 and more; docs/kernels/depthwise_backward_weight_nchw.md
// has the count.
#include "depthwise_backward_weight_nchw.h"

#include <type_traits>

#include "depthwise_nchw_copy.cuh"
#include "element.h"
#include "kernels.h"
#include "portability.h"

namespace cnnext::cuda {
namespace {

using namespace backward_weight_nchw;

/// Planes of x or dy: their strides and their size.
struct PlanesOf {
  int64_t stride_n, stride_c, stride_h;
  int H, W;
  bool dense;    // what is copied of an image is one run of memory
  bool aligned;  // and all these runs begin at multiples of 16 bytes
  int image_bytes;

  /// Rows [begin, end) of `planes` planes from plane k of image n on.
  template <class T>
  __device__ PlaneRows<const T> rows(const T* tensor, int64_t n, int64_t k, int planes, int begin, int end) const {
    return {tensor + n * stride_n + k * stride_c + begin * stride_h, stride_c, stride_h, planes, end - begin, W, dense};
  }
};

/// The kernel's arguments besides pointers.
struct Geometry {
  PlanesOf x, dy;
  int64_t K;
  int N, pad_h, pad_w;
  int planes, images, tile_h, bands;
  int groups;                        // of planes
  int strips, shares, rows_a_share;  // threads in a row and in a column of a plane; rows of dy for each
  int image_shares;                  // threads for the same place of different images
  bool planes_first;                 // the order of threads
  int sum_parts;                     // in which the block adds up the sums of the threads of a plane
  int part_tiles, longer_parts;      // tiles of a part; the first parts have one more
  int stages, stage_bytes, dy_offset;
};

/// A tile: its images start at n * images, its rows at band * tile_h.
struct TileOfGroup {
  int n, band;

  __device__ TileOfGroup(const Geometry& g, int index) : n(index / g.bands), band(index % g.bands) {}
  __device__ void advance(const Geometry& g) {
    if (++band == g.bands) band = 0, ++n;
  }

  __device__ int images(const Geometry& g) const { return min(g.images, g.N - n * g.images); }
  __device__ int first_row(const Geometry& g) const { return band * g.tile_h; }
  __device__ int end_row(const Geometry& g) const { return min(first_row(g) + g.tile_h, g.dy.H); }
  /// The rows of x that are copied: all of them, or those under the band.
  __device__ int first_x_row(const Geometry& g, int stride) const {
    return g.bands == 1 ? 0 : min(max(first_row(g) * stride - g.pad_h, 0), g.x.H);
  }
  __device__ int end_x_row(const Geometry& g, int stride, int filter) const {
    if (g.bands == 1) return g.x.H;
    return min(max((end_row(g) - 1) * stride - g.pad_h + filter, first_x_row(g, stride)), g.x.H);
  }
};

/// Starts the copy of `rows` of one image, and of the images after it, to regions one after the other.
template <int kThreads, class T>
__device__ __forceinline__ void copy_images(const PlanesOf& of, T* region, PlaneRows<const T> rows, int images) {
  const int step = of.image_bytes / static_cast<int>(sizeof(T));
  const int count = rows.count();
  if (images > 1 && of.aligned && count % kVector<T> == 0) {
    // A run of a small image has hardly an access for every thread: all images in one loop.
    for (int i = threadIdx.x * kVector<T>; i < count; i += kThreads * kVector<T>) {
      const T* from = rows.global + i;
      T* to = region + i;
#pragma unroll 4
      for (int image = 0; image < images; ++image, from += of.stride_n, to += step) copy_async<16>(to, from);
    }
    return;
  }
  for (int image = 0; image < images; ++image, rows.global += of.stride_n, region += step) {
    copy_in<kThreads>(region, rows);
  }
}

/// How many elements behind the start of its region copy_in puts the first element of a run.
template <class T>
__device__ __forceinline__ int skew_of(const PlaneRows<const T>& rows) {
  return rows.dense ? Run::of(rows.global, 0, kVector<T>).skew : 0;
}

/// A thread's sums of one plane.
template <int kS>
struct Sums {
  float taps[kS][kS] = {};
  float dy = 0;
};

/// A thread's way down its columns of one plane after the other.
template <class T, int kColumns, int kS, int kStride>
class Slide {
 public:
  /// The first column of x is w.
  __device__ __forceinline__ Slide(const PlanesOf& x, const PlanesOf& dy, int w)
      : H_(x.H), x_pitch_(x.W), dy_pitch_(dy.W) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      inside_ |= static_cast<unsigned>(w + i) < static_cast<unsigned>(x.W) ? 1u << i : 0u;
    }
  }

  /// Adds the products of `count` rows of outputs, the first of them at `dy`; `x` is the element of row h and the first
  /// column that the first output meets, inside the image or not.
  __device__ __forceinline__ void run(Sums<kS>& sums, const T* x, const T* dy, int h, int count) {
    x_ = x, dy_ = dy, h_ = h;
#pragma unroll
    for (int r = 0; r < kS - kStride; ++r) load_row_if_inside(rows_[r]);
    // kS steps bring every row back to its place. The first loop is for those whose new rows all lie in the image.
#pragma unroll 1
    for (; count >= kS && h_ >= 0 && h_ + kS * kStride <= H_; count -= kS) {
#pragma unroll
      for (int i = 0; i < kS; ++i) step(sums, i * kStride, [&](float (&row)[kWidth]) { load_row(row); });
    }
#pragma unroll 1
    for (; count > 0; count -= kS) {
#pragma unroll
      for (int i = 0; i < kS; ++i) {
        if (i >= count) break;
        step(sums, i * kStride, [&](float (&row)[kWidth]) { load_row_if_inside(row); });
      }
    }
  }

 private:
  static constexpr int kWidth = (kColumns - 1) * kStride + kS;

  /// Loads the next row, which lies in the image.
  __device__ __forceinline__ void load_row(float (&row)[kWidth]) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (inside_ >> i & 1) row[i] = to_accumulator(x_[i]);
    }
    x_ += x_pitch_;
    ++h_;
  }

  /// Loads the next row, or zeros where there is none.
  __device__ __forceinline__ void load_row_if_inside(float (&row)[kWidth]) {
    if (static_cast<unsigned>(h_) < static_cast<unsigned>(H_)) return load_row(row);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) row[i] = 0;
    x_ += x_pitch_;
    ++h_;
  }

  /// The products of the next row of outputs with the rows of x from the `first`-th since the start on, of which the
  /// last kStride are loaded here, each just before it is used.
  template <class Load>
  __device__ __forceinline__ void step(Sums<kS>& sums, int first, const Load& load_next_row) {
    float dy[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      dy[c] = to_accumulator(dy_[c]);
      sums.dy += dy[c];
    }
    dy_ += dy_pitch_;
#pragma unroll
    for (int r = 0; r < kS; ++r) {
      float (&row)[kWidth] = rows_[(first + r) % kS];
      if (r >= kS - kStride) load_next_row(row);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int s = 0; s < kS; ++s) sums.taps[r][s] += row[c * kStride + s] * dy[c];
      }
    }
  }

  const T* x_;   // row h_ of the first column of x
  const T* dy_;  // the next output
  int h_;
  const int H_, x_pitch_, dy_pitch_;
  unsigned inside_ = 0;  // bit i: column i of x lies in the image
  // The i-th row since the start lies in rows_[i % kS], so nothing moves. Columns outside the image are always zero.
  float rows_[kS][kWidth] = {};
};

template <class T, int kColumns, int kS, int kStride>
__global__ void __launch_bounds__(kBlockThreads<kS>, 2)
    depthwise_backward_weight_nchw_kernel(Geometry g, const T* __restrict__ dy, const T* __restrict__ x,
                                          float* __restrict__ workspace) {
  constexpr int kThreads = kBlockThreads<kS>;
  CNNEXT_DYNAMIC_SHARED(unsigned char, smem_tiles);
  const int group = blockIdx.x % g.groups;
  const int part = blockIdx.x / g.groups;
  const int64_t first_channel = int64_t{group} * g.planes;
  const int planes = static_cast<int>(min(int64_t{g.planes}, g.K - first_channel));
  // Threads run along a row and through the planes, or the other way round, then through the shares of rows and those
  // of images; the last may have nothing to do.
  const int thread = threadIdx.x;
  const int strip = g.planes_first ? thread / g.planes % g.strips : thread % g.strips;
  const int plane = g.planes_first ? thread % g.planes : thread / g.strips % g.planes;
  const int row_of_shares = thread / (g.strips * g.planes);
  const int share = row_of_shares % g.shares, image_share = row_of_shares / g.shares;

  const int count = g.part_tiles + (part < g.longer_parts);
  TileOfGroup tile(g, part * g.part_tiles + min(part, g.longer_parts));
  TileOfGroup next = tile;
  int copied = 0, copy_stage = 0;
  // Starts the copy of the next tile, if there is one; closes a group of copies in either case.
  const auto copy_next = [&] {
    if (copied < count) {
      unsigned char* const stage = smem_tiles + copy_stage * g.stage_bytes;
      const int64_t n = int64_t{next.n} * g.images;
      const int images = next.images(g);
      copy_images<kThreads>(
          g.x, reinterpret_cast<T*>(stage),
          g.x.rows(x, n, first_channel, planes, next.first_x_row(g, kStride), next.end_x_row(g, kStride, kS)), images);
      copy_images<kThreads>(g.dy, reinterpret_cast<T*>(stage + g.dy_offset),
                            g.dy.rows(dy, n, first_channel, planes, next.first_row(g), next.end_row(g)), images);
    }
    copy_async_commit();
    next.advance(g);
    ++copied;
    if (++copy_stage == g.stages) copy_stage = 0;
  };

  Sums<kS> sums;
  for (int i = 1; i < g.stages; ++i) copy_next();
  int stage = 0;
  for (int t = 0; t < count; ++t, tile.advance(g)) {
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

    const unsigned char* const x_stage = smem_tiles + stage * g.stage_bytes;
    if (++stage == g.stages) stage = 0;
    const int x_begin = tile.first_x_row(g, kStride), x_end = tile.end_x_row(g, kStride, kS);
    const int dy_begin = tile.first_row(g), dy_end = tile.end_row(g);
    const int first_row = dy_begin + share * g.rows_a_share;
    const int rows = plane < planes && image_share < g.image_shares ? min(g.rows_a_share, dy_end - first_row) : 0;
    const int images = rows > 0 ? tile.images(g) : 0;
    for (int q = strip * kColumns; q < g.dy.W; q += g.strips * kColumns) {
      const int h = first_row * kStride - g.pad_h, w = q * kStride - g.pad_w;
      Slide<T, kColumns, kS, kStride> slide(g.x, g.dy, w);
      // This thread's first elements in the first image.
      const int x_offset = (plane * (x_end - x_begin) + h - x_begin) * g.x.W + w;
      const int dy_offset = (plane * (dy_end - dy_begin) + share * g.rows_a_share) * g.dy.W + q;
      for (int i = image_share; i < images; i += g.image_shares) {
        const int64_t n = int64_t{tile.n} * g.images + i;
        const int x_skew = g.x.aligned ? 0 : skew_of(g.x.rows(x, n, first_channel, planes, x_begin, x_end));
        const int dy_skew = g.dy.aligned ? 0 : skew_of(g.dy.rows(dy, n, first_channel, planes, dy_begin, dy_end));
        slide.run(sums, reinterpret_cast<const T*>(x_stage + i * g.x.image_bytes) + x_skew + x_offset,
                  reinterpret_cast<const T*>(x_stage + g.dy_offset + i * g.dy.image_bytes) + dy_skew + dy_offset, h,
                  rows);
      }
    }
  }
  copy_async_wait<0>();
  __syncthreads();

  // Where the tiles were: the threads' sums, [S * S + 1][shares of images and rows][plane][strip], a tap at kThreads,
  // and after them [S * S + 1][part of the sum][plane].
  constexpr int kTaps = kS * kS + 1;
  float* const smem_sums = reinterpret_cast<float*>(smem_tiles);
  if (image_share < g.image_shares) {
    float* const place = smem_sums + (row_of_shares * g.planes + plane) * g.strips + strip;
#pragma unroll
    for (int tap = 0; tap < kTaps - 1; ++tap) place[tap * kThreads] = sums.taps[tap / kS][tap % kS];
    place[(kTaps - 1) * kThreads] = sums.dy;
  }
  __syncthreads();
  float* const smem_parts = smem_sums + kTaps * kThreads;
  float* const of_group = workspace + int64_t{part} * kTaps * g.K + first_channel;
  // A thread adds up one part of the summands of one plane, for every taps_at_once-th tap.
  const int columns = g.planes * g.sum_parts, taps_at_once = kThreads / columns;
  const int first_tap = thread / columns, column = thread % columns;
  const int sum_part = column / g.planes, of_plane = column % g.planes;
  const int summands = g.image_shares * g.shares * g.strips;
  const int a_part = (summands + g.sum_parts - 1) / g.sum_parts;
  const int first_summand = sum_part * a_part, end_summand = min(first_summand + a_part, summands);
  const int first_strip = first_summand % g.strips;
  const int first_place = (first_summand / g.strips * g.planes + of_plane) * g.strips + first_strip;
  const int next_row = (g.planes - 1) * g.strips;  // from behind the last strip of a row to the plane's next row
  for (int tap = first_tap < taps_at_once ? first_tap : kTaps; tap < kTaps; tap += taps_at_once) {
    const float* summand = smem_sums + tap * kThreads + first_place;
    float sum = 0;
    for (int j = first_summand, in_row = first_strip; j < end_summand; ++j) {
      sum += *summand++;
      if (++in_row == g.strips) in_row = 0, summand += next_row;
    }
    if (g.sum_parts > 1) {
      smem_parts[tap * columns + column] = sum;
    } else if (of_plane < planes) {
      of_group[tap * g.K + of_plane] = sum;
    }
  }
  if (g.sum_parts == 1) return;
  __syncthreads();
  for (int i = thread; i < kTaps * planes; i += kThreads) {
    const int tap = i / planes, plane_of_sum = i % planes;
    float sum = 0;
    for (int j = 0; j < g.sum_parts; ++j) sum += smem_parts[tap * columns + j * g.planes + plane_of_sum];
    of_group[tap * g.K + plane_of_sum] = sum;
  }
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

template <class T>
Geometry make_geometry(const ConvParams& params, const LaunchConfig& config, const T* dy, const T* x) {
  const int64_t groups = config.grid[0] / config.parts;
  const int group_planes = static_cast<int>(ceil_div(params.K, groups));
  const Tile tile(params, group_planes, config.planes / group_planes, config.tile_h);
  const auto planes_of = [&](const T* tensor, const Strides4& strides, int64_t H, int64_t W, int64_t image_bytes) {
    PlanesOf planes;
    planes.stride_n = strides.n, planes.stride_c = strides.c, planes.stride_h = strides.h;
    planes.H = static_cast<int>(H), planes.W = static_cast<int>(W);
    planes.dense = strides.h == W && (tile.planes == 1 || strides.c == H * W);
    // Tiles begin at an image, a group of planes, and, in bands, at a row.
    const int64_t steps = strides.n | group_planes * strides.c | (tile.bands > 1 ? strides.h : 0);
    planes.aligned = planes.dense && (reinterpret_cast<uintptr_t>(tensor) | steps * sizeof(T)) % 16 == 0;
    planes.image_bytes = static_cast<int>(image_bytes);
    return planes;
  };
  Geometry g;
  g.x = planes_of(x, params.x_strides, params.H, params.W, tile.x_bytes);
  g.dy = planes_of(dy, params.y_strides, params.P, params.Q, tile.dy_bytes);
  g.K = params.K;
  g.N = static_cast<int>(params.N);
  g.pad_h = static_cast<int>(params.pad_h), g.pad_w = static_cast<int>(params.pad_w);
  g.planes = tile.planes, g.images = tile.images, g.tile_h = tile.tile_h, g.bands = tile.bands;
  g.groups = static_cast<int>(groups);
  g.strips = tile.strips, g.shares = tile.shares, g.image_shares = tile.image_shares;
  g.planes_first = planes_first(params, tile);
  g.sum_parts = sum_parts(params, tile);
  g.rows_a_share = static_cast<int>(ceil_div(tile.tile_h, tile.shares));
  g.part_tiles = static_cast<int>(tile.count(params) / config.parts);
  g.longer_parts = static_cast<int>(tile.count(params) % config.parts);
  g.stages = stages(config.shared_bytes, tile.stage_bytes());
  g.stage_bytes = static_cast<int>(tile.stage_bytes());
  g.dy_offset = static_cast<int>(tile.images * tile.x_bytes);
  return g;
}

template <class T>
void run(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x, void* dw, void* dbias,
         void* workspace, Stream stream) {
  const auto launch_kernel = [&](auto kernel) {
    launch(kernel, dim3(static_cast<unsigned>(config.grid[0])), dim3(config.block[0]), config.shared_bytes, stream,
           make_geometry(params, config, static_cast<const T*>(dy), static_cast<const T*>(x)),
           static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<float*>(workspace));
  };
  const auto with_filter = [&](auto filter) {
    constexpr int kS = decltype(filter)::value, kPair = sizeof(T) == 2 ? 2 : 1;
    const bool pairs = thread_columns(params) == kPair;
    if (params.stride_w == 1) {
      launch_kernel(pairs ? depthwise_backward_weight_nchw_kernel<T, kPair, kS, 1>
                          : depthwise_backward_weight_nchw_kernel<T, 1, kS, 1>);
    } else {
      launch_kernel(pairs ? depthwise_backward_weight_nchw_kernel<T, kPair, kS, 2>
                          : depthwise_backward_weight_nchw_kernel<T, 1, kS, 2>);
    }
  };
  if (thread_columns(params) == 7) {
    launch_kernel(depthwise_backward_weight_nchw_kernel<T, 7, 3, 1>);
  } else {
    switch (params.S) {
      case 3: with_filter(Constant<3>()); break;
      case 5: with_filter(Constant<5>()); break;
      default: with_filter(Constant<7>());  // the planner lists no other size
    }
  }
  depthwise_backward_weight_reduce(params, config.parts, workspace, dw, dbias, stream);
}

}  // namespace

void depthwise_backward_weight_nchw(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x,
                                    void* dw, void* dbias, void* workspace, Stream stream) {
  switch (params.dtype) {
    case DType::kFloat32: return run<float>(params, config, dy, x, dw, dbias, workspace, stream);
    case DType::kFloat16: return run<__half>(params, config, dy, x, dw, dbias, workspace, stream);
    default: return run<__nv_bfloat16>(params, config, dy, x, dw, dbias, workspace, stream);
  }
}

}  // namespace cnnext::cuda
