// Grouped convolution with 4, 8, 16 or 32 channels a group on both sides, 16-bit, channels_last: gradient with respect
// to the filter and the bias, the first of two stages.
//
//   dw[k, r, s, c] = sum over n, p, q of dy[n, p, q, k] * x[n, p * stride - pad + r * dilation, ..., c]
//   dbias[k]       = sum over n, p, q of dy[n, p, q, k]
//
// As in grouped_narrow_nhwc.cuh a block takes 64 channels of 8 x 16 output pixels at a time, with the x under them in
// shared memory once for all taps. It goes through its part of the tiles one after the other and keeps the sums of up
// to kTaps taps in registers: a warp owns 16 output channels, and of each tap the input channels of their groups. The
// pixels of a row are the reduced dimension, so both factors are read transposed. Several blocks an SM hide the time of
// the copies. The limit is memory: x, with its halo, and dy once.
//
// Leaves [parts][groups][R * S][width][width] sums, and after them those of dy, [parts][K], in the workspace.
#include "grouped_narrow_launch.cuh"

namespace cnnext::cuda {
namespace {

constexpr int kTaps = 9;  // of a block; a larger filter takes several

struct WeightOperands {
  const void* x;
  const void* dy;
  float* sums;
  float* bias_sums;  // or null
  int64_t x_n, x_h, x_w;
  int64_t dy_n, dy_h, dy_w;
  TapAxis h, w;
  int64_t tiles;  // of 8 x 16 pixels, of all images
  int tiles_h, tiles_w;
  int halo_h, halo_w;
  int channels, bundles, parts;
};

/// Grid: x = bundles of 64 channels (fastest) x parts, y = groups of kTaps taps.
template <class T, int kWidth>
__global__ void __launch_bounds__(NarrowTile::kThreads, 2)
    grouped_backward_weight_narrow_nhwc_kernel(WeightOperands op) {
  using Tile = NarrowTile;
  constexpr int kSide = kSquare<kWidth>;
  constexpr int kColumns = kSide < 16 ? 16 : kSide;  // input channels that a warp's 16 output channels meet
  const int first_channel = blockIdx.x % op.bundles * Tile::kN;
  const int part = blockIdx.x / op.bundles;
  const int first_tap = blockIdx.y * kTaps;
  const int taps = min(op.h.taps * op.w.taps - first_tap, kTaps);

  CNNEXT_DYNAMIC_SHARED(unsigned char, shared);
  unsigned char* const x_tile = shared + Tile::kM * kLineBytes;
  const auto x_piece = [&](int row, int column, int piece) {
    return x_tile + (row * op.halo_w + column) * kLineBytes + ((piece ^ (column / op.w.step & 7)) * 16);
  };

  const int lane = threadIdx.x % 32, matrix = lane / 8, row_of_matrix = lane % 8;
  const int warp_channel = threadIdx.x / 32 * 16;
  const int first_column = warp_channel / kColumns * kColumns;  // of the input channels, in the bundle
  float sums[kTaps][kColumns / 8][4] = {};
  // The sums of dy: a thread adds 2 channels over every 4th pixel.
  constexpr int kWords = Tile::kN / 2, kSlices = Tile::kThreads / kWords;
  float2 dy_sum = make_float2(0.f, 0.f);

  const int64_t last = (part + 1) * op.tiles / op.parts;
#pragma unroll 1
  for (int64_t tile = part * op.tiles / op.parts; tile < last; ++tile) {
    const int first_j = static_cast<int>(tile % op.tiles_w) * Tile::kW;
    const int first_i = static_cast<int>(tile / op.tiles_w % op.tiles_h) * Tile::kH;
    const int64_t n = tile / op.tiles_w / op.tiles_h;
    const T* dy = static_cast<const T*>(op.dy) + n * op.dy_n + first_channel;
    for (int i = threadIdx.x; i < Tile::kM * kLinePieces; i += Tile::kThreads) {
      const int piece = i % kLinePieces, pixel = i / kLinePieces;
      const int row = first_i + pixel / Tile::kW, column = first_j + pixel % Tile::kW;
      const bool exists =
          row < op.h.outputs && column < op.w.outputs && first_channel + piece * kVector<T> < op.channels;
      copy_async<16>(piece_of(shared, pixel, piece), dy + row * op.dy_h + column * op.dy_w + piece * kVector<T>,
                     exists);
    }
    const T* x = static_cast<const T*>(op.x) + n * op.x_n + first_channel;
    const int lowest_h = first_i * op.h.step + op.h.first, lowest_w = first_j * op.w.step + op.w.first;
    for (int i = threadIdx.x; i < op.halo_h * op.halo_w * kLinePieces; i += Tile::kThreads) {
      const int piece = i % kLinePieces, column = i / kLinePieces % op.halo_w, row = i / kLinePieces / op.halo_w;
      const int h = lowest_h + row, w = lowest_w + column;
      const bool inside = static_cast<unsigned>(h) < static_cast<unsigned>(op.h.size) &&
                          static_cast<unsigned>(w) < static_cast<unsigned>(op.w.size) &&
                          first_channel + piece * kVector<T> < op.channels;
      copy_async<16>(x_piece(row, column, piece), x + h * op.x_h + w * op.x_w + piece * kVector<T>, inside);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();

    // NOTE: a pixel past the end of a row has dy = 0, but x may be infinite there, and zero times that is no zero. A
    // lane holds pixels 2 * (lane % 4) and the next, and 8 further on.
    const int left = op.w.outputs - first_j - lane % 4 * 2;
    const auto mask_of = [](int pixels) { return pixels <= 0 ? 0u : pixels == 1 ? 0xffffu : 0xffffffffu; };
    const unsigned mask[2] = {mask_of(left), mask_of(left - 8)};
    const int rows = min(Tile::kH, op.h.outputs - first_i);
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      unsigned a[4];
      load_matrices_transposed(
          a, piece_of(shared, row * Tile::kW + matrix / 2 * 8 + row_of_matrix, warp_channel / 8 + matrix % 2));
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        if (t >= taps) break;
        const int tap_h = (first_tap + t) / op.w.taps, tap_w = (first_tap + t) % op.w.taps;
        const int x_row = row * op.h.step + tap_h * op.h.tap_step;
        const int x_column = (matrix % 2 * 8 + row_of_matrix) * op.w.step + tap_w * op.w.tap_step;
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
          unsigned b[4];
          load_matrices_transposed(b, x_piece(x_row, x_column, first_column / 8 + 2 * j + matrix / 2));
          multiply_16x8x16(sums[t][2 * j], a, b[0] & mask[0], b[1] & mask[1], T());
          multiply_16x8x16(sums[t][2 * j + 1], a, b[2] & mask[0], b[3] & mask[1], T());
        }
      }
    }
    if (op.bias_sums != nullptr && first_tap == 0) {
      const int channel = threadIdx.x % kWords * 2;
#pragma unroll 8
      for (int pixel = threadIdx.x / kWords; pixel < Tile::kM; pixel += kSlices) {
        const unsigned char* at = piece_of(shared, pixel, channel / 8) + channel % 8 * 2;
        const float2 pair = unpack_pair(load<unsigned>(at), T());
        dy_sum.x += pair.x, dy_sum.y += pair.y;
      }
    }
    __syncthreads();
  }

  const int groups = op.channels / kWidth, all_taps = op.h.taps * op.w.taps;
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    if (t >= taps) break;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Only the squares on the diagonal are part of the filter.
        const int k = first_channel + warp_channel + lane / 4 + i / 2 * 8;
        const int c = first_channel + first_column + 8 * j + lane % 4 * 2 + i % 2;
        if (k / kWidth != c / kWidth || k >= op.channels) continue;
        const int64_t group = static_cast<int64_t>(part) * groups + k / kWidth;
        op.sums[((group * all_taps + first_tap + t) * kWidth + k % kWidth) * kWidth + c % kWidth] = sums[t][j][i];
      }
    }
  }
  if (op.bias_sums != nullptr && first_tap == 0) {
    auto* slices = reinterpret_cast<float*>(shared);  // [kSlices][kN]
    float* to = slices + threadIdx.x / kWords * Tile::kN + threadIdx.x % kWords * 2;
    to[0] = dy_sum.x, to[1] = dy_sum.y;
    __syncthreads();
    const int channel = first_channel + static_cast<int>(threadIdx.x);
    if (threadIdx.x < Tile::kN && channel < op.channels) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kSlices; ++i) sum += slices[i * Tile::kN + threadIdx.x];
      op.bias_sums[static_cast<int64_t>(part) * op.channels + channel] = sum;
    }
  }
}

}  // namespace

void grouped_backward_weight_narrow_nhwc(const ConvParams& p, const LaunchConfig& config, const void* dy, const void* x,
                                         bool with_bias, float* workspace, Stream stream) {
  WeightOperands op{};
  op.x = x, op.dy = dy;
  op.x_n = p.x_strides.n, op.x_h = p.x_strides.h, op.x_w = p.x_strides.w;
  op.dy_n = p.y_strides.n, op.dy_h = p.y_strides.h, op.dy_w = p.y_strides.w;
  const GemmAxes axes = forward_axes(p);
  op.h = axes.h[0], op.w = axes.w[0];
  op.tiles_h = static_cast<int>(ceil_div(p.P, NarrowTile::kH));
  op.tiles_w = static_cast<int>(ceil_div(p.Q, NarrowTile::kW));
  op.tiles = p.N * op.tiles_h * op.tiles_w;
  op.halo_h = halo_of(op.h, NarrowTile::kH), op.halo_w = halo_of(op.w, NarrowTile::kW);
  op.channels = static_cast<int>(p.C), op.parts = config.parts;
  op.bundles = static_cast<int>(ceil_div(p.C, NarrowTile::kN));
  op.sums = workspace;
  op.bias_sums = with_bias ? workspace + config.parts * p.K * p.channels_per_group() * p.R * p.S : nullptr;

  const dim3 grid(static_cast<unsigned>(config.grid[0]), static_cast<unsigned>(config.grid[1]));
  dispatch_width(p.channels_per_group(), [&](auto width) {
    const auto run = [&](auto element) {
      launch(grouped_backward_weight_narrow_nhwc_kernel<decltype(element), width()>, grid, dim3(NarrowTile::kThreads),
             config.shared_bytes, stream, op);
    };
    p.dtype == DType::kFloat16 ? run(__half()) : run(__nv_bfloat16());
  });
}

}  // namespace cnnext::cuda
