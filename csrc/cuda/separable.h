// The depthwise-separable block of inference on the host: depthwise convolution -> bias -> activation -> 1x1
// convolution
// -> bias (-> residual) -> activation, as one kernel or as two, whichever a cost model expects to be faster.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace cnnext::cuda {

/// A block as its planner sees it.
struct SeparableProblem {
  /// The depthwise half: its x is the block's input, its K the channels between the halves, its y_strides are ignored.
  ConvParams depthwise;
  int64_t outputs = 0;  // K of the 1x1 half
  Strides4 y_strides{};
  Activation activation = Activation::kNone;  // of the 1x1 half
  bool has_residual = false;
  int alignment = 16;  // the largest power of two, at most 16, that divides the addresses of all operands in bytes
  DeviceFacts device;
  bool allow_tf32 = false;
};

/// One way to run a block.
struct SeparableConfig {
  bool fused = false;
  LaunchConfig kernel;      // of the fused kernel, or of the depthwise one
  LaunchConfig pointwise;   // of the second kernel, unless fused
  double microseconds = 0;  // predicted, launches included

  std::string to_string() const;
};

/// Every configuration that can run the problem, the one that should be fastest first. One of them is two kernels, and
/// the only one where the fused kernel cannot run.
std::vector<SeparableConfig> separable_configs(const SeparableProblem& problem);

/// Says whether the preferred configuration is one kernel or two, and why: the predicted times, or what the fused
/// kernel does not take.
std::string explain_separable(const SeparableProblem& problem);

/// The halves as problems of their own, with the tensor between them dense in the layout of x.
Problem depthwise_half(const SeparableProblem& problem);
Problem pointwise_half(const SeparableProblem& problem);

/// Bytes of scratch memory that a configuration needs; 0 if none.
int64_t separable_workspace_bytes(const SeparableProblem& problem, const SeparableConfig& config);

/// Shapes: x (N, C, H, W); depthwise_w (M, 1, R, S), depthwise_bias (M); w (K, M, 1, 1), bias (K); y and residual
/// (N, K, P, Q). Biases and the residual may be null. Filters are contiguous.
struct SeparableOperands {
  const void* x;
  const void* depthwise_w;
  const void* depthwise_bias;
  const void* w;
  const void* bias;
  const void* residual;  // laid out like y
  void* y;
};

/// Runs the block. `workspace` has separable_workspace_bytes(...), 16-byte aligned.
void separable(const SeparableProblem& problem, const SeparableConfig& config, const SeparableOperands& operands,
               void* workspace, Stream stream);

/// The fused kernel, separable_nhwc.cu.
void separable_nhwc(const SeparableProblem& problem, const LaunchConfig& config, const SeparableOperands& operands,
                    Stream stream);

/// y = activation(y + residual), both with the strides and sizes of y; separable_residual.cu.
void add_residual(const ConvParams& params, const void* residual, void* y, Stream stream);

// --- What the planner and the fused kernel share. ---

/// Outputs of a block of the fused kernel: `m` pixels by `n` channels.
struct SeparableTileShape {
  int m, n, threads;
};

constexpr SeparableTileShape kSeparableTiles[] = {{128, 256, 256}, {64, 128, 256}, {64, 64, 128}};

/// Neighbouring columns of outputs that a thread of the depthwise half makes at a time, and its neighbouring channels.
constexpr int kSeparableColumns = 4;
constexpr int kSeparableChannels = 4;

/// The input pixels under a tile of outputs, and how a block's shared memory is laid out. A line of 128 bytes holds a
/// slice of the channels of one pixel.
///
/// A stage holds a slice of everything: the two tiles of the product, A and B, the halo, and the depthwise filter with
/// its bias, as floats.
struct SeparableLayout {
  int halo_h, halo_w;  // pixels
  int row_pitch;       // bytes from row to row of the halo
  int halo_bytes;
  int stage_bytes, stages;  // two where there is more than one slice
  int shared_bytes;
};

constexpr SeparableLayout separable_layout(int tile_h, int tile_w, int columns, int filter, int stride,
                                           int64_t channels, int element_bytes) {
  constexpr int kLine = 128;
  const auto whole_lines = [](int bytes) { return (bytes + kLine - 1) / kLine * kLine; };
  const int slice = kLine / element_bytes;
  SeparableLayout layout{};
  layout.halo_h = (tile_h - 1) * stride + filter, layout.halo_w = (tile_w - 1) * stride + filter;
  // NOTE: with half a line of channels, the lanes of an access meet two rows of outputs, `stride` rows of the halo
  // apart; the padding puts these half a line of banks apart.
  layout.row_pitch = layout.halo_w * kLine + kLine / 2 / stride;
  layout.halo_bytes = whole_lines(layout.halo_h * layout.row_pitch);
  layout.stage_bytes =
      (tile_h * tile_w + columns) * kLine + layout.halo_bytes + whole_lines((filter * filter + 1) * (slice + 4) * 4);
  layout.stages = channels > slice ? 2 : 1;
  const int result = tile_h * tile_w * (columns + 8) * 4;  // GemmTile::kResultBytes
  const int stages = layout.stages * layout.stage_bytes;
  layout.shared_bytes = stages > result ? stages : result;
  return layout;
}

}  // namespace cnnext::cuda
