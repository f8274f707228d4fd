// Which kernel runs a problem, and with what grid, block and tile: chosen on the host from the problem and a few facts
// about the device alone, so it can be printed, and tested without a GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../conv_params.h"

namespace cnnext::cuda {

/// What a planner knows of the device. The defaults are an H100's, but for wgmma, which is there only if the caller
/// says so.
struct DeviceFacts {
  int multiprocessors = 132;
  int threads_per_multiprocessor = 2048;
  int shared_bytes_per_multiprocessor = 228 * 1024;
  int shared_bytes_per_block = 227 * 1024;
  bool wgmma = false;  // the device has it, and the kernels with it are compiled in
  int registers_per_multiprocessor = 65536;
  int64_t l2_bytes = int64_t{50} << 20;
  double clock_ghz = 1.75;
  double copy_gigabytes_per_second = 3000;  // of a copy, bytes read and written
};

/// One for each .cu file with kernels; `to_string` gives the file's name.
enum class Kernel {
  kDepthwiseForwardGeneral,
  kDepthwiseForwardNhwc,
  kDepthwiseForwardNchw,
  kDepthwiseBackwardInputGeneral,
  kDepthwiseBackwardInputNhwc,
  kDepthwiseBackwardInputNchw,
  kDepthwiseBackwardWeightGeneral,
  kDepthwiseBackwardWeightNhwc,
  kDepthwiseBackwardWeightNchw,
  kGroupedForwardGeneral,
  kGroupedForwardNhwc,
  kGroupedForwardNarrowNhwc,
  kGroupedForwardWgmmaNhwc,
  kGroupedBackwardInputGeneral,
  kGroupedBackwardInputNhwc,
  kGroupedBackwardInputNarrowNhwc,
  kGroupedBackwardInputWgmmaNhwc,
  kGroupedBackwardWeightGeneral,
  kGroupedBackwardWeightNhwc,
  kGroupedBackwardWeightNarrowNhwc,
  kSeparableNhwc,
};

const char* to_string(Kernel kernel);

struct LaunchConfig {
  Kernel kernel;
  int64_t grid[3] = {1, 1, 1};
  int block[3] = {1, 1, 1};
  int shared_bytes = 0;  // dynamic

  // What the fields below mean is said in the kernel's file; 0 where it has no such choice.
  int tile_h = 0, tile_w = 0;  // outputs of a thread, or of a block
  int columns = 0;             // output channels of a block, where tile_h and tile_w are of its pixels
  int vector = 0;              // elements of an access to global memory
  int planes = 0;              // (n, c) planes of a block
  int parts = 0;               // partial results that a second kernel adds up
  bool tf32 = false;           // float32 products rounded to TF32 on tensor cores
  bool packs_filter = false;   // the filter is first copied to the workspace as [K][R][S][C / groups]
  bool converts = false;       // x, dy and the results are converted between NCHW and channels_last in the workspace
  int padded_channels = 0;     // x, or dx, and the filter have this many channels in the workspace, zeros at the end
  int padded_outputs = 0;      // y, or dy, has this many channels in the workspace, zeros at the end

  std::string to_string() const;
};

/// Problem as the planners see it: `alignment` is the largest power of two, at most 16, that divides the addresses of
/// both x and y in bytes.
struct Problem {
  ConvParams params;
  int alignment = 16;
  int filter_alignment = 16;  // the same of the filter's address; only the grouped kernels ask
  DeviceFacts device;
  bool allow_tf32 = false;            // float32 may be rounded to TF32 on tensor cores
  bool filter_channels_last = false;  // w and dw lie in memory as [K][R][S][C / groups]
  bool prefer_wgmma = false;          // where a kernel with wgmma can run, it comes first
};

/// Every configuration that can run the problem, the preferred one first. The last is the general kernel's, so the list
/// is never empty.
std::vector<LaunchConfig> depthwise_forward_configs(const Problem& problem);
std::vector<LaunchConfig> depthwise_backward_input_configs(const Problem& problem);
std::vector<LaunchConfig> depthwise_backward_weight_configs(const Problem& problem);

std::vector<LaunchConfig> grouped_forward_configs(const Problem& problem);
std::vector<LaunchConfig> grouped_backward_input_configs(const Problem& problem);
std::vector<LaunchConfig> grouped_backward_weight_configs(const Problem& problem);

/// What a grouped configuration keeps where in its workspace, in bytes from its start.
struct GroupedWorkspace {
  int64_t x = 0, y = 0;  // channels_last copies of the input and the output, or their gradients
  int64_t filter = 0;    // [K][R][S][C / groups]
  int64_t sums = 0;      // partial sums
  int64_t bytes = 0;     // in all
};

/// Channels of an activation in memory: `padded`, if it is copied to the workspace, else its own.
constexpr int64_t channels_in_memory(int64_t channels, int padded) { return padded > 0 ? padded : channels; }

GroupedWorkspace grouped_workspace(const ConvParams& params, const LaunchConfig& config);

/// Bytes of the workspace that a configuration needs; 0 if none.
int64_t workspace_bytes(const Problem& problem, const LaunchConfig& config);

// --- The planners of single kernels, each beside its kernel in <kernel>_plan.cpp. They append to `configs`, the
// preferred configuration first, or nothing if the kernel cannot run the problem. Those with wgmma put theirs in front
// where that is faster. ---

using Configs = std::vector<LaunchConfig>;

void plan_depthwise_forward_general(const Problem& problem, Configs& configs);
void plan_depthwise_forward_nhwc(const Problem& problem, Configs& configs);
void plan_depthwise_forward_nchw(const Problem& problem, Configs& configs);
void plan_depthwise_backward_input_general(const Problem& problem, Configs& configs);
void plan_depthwise_backward_input_nhwc(const Problem& problem, Configs& configs);
void plan_depthwise_backward_input_nchw(const Problem& problem, Configs& configs);
void plan_depthwise_backward_weight_general(const Problem& problem, Configs& configs);
void plan_depthwise_backward_weight_nhwc(const Problem& problem, Configs& configs);
void plan_depthwise_backward_weight_nchw(const Problem& problem, Configs& configs);

void plan_grouped_forward_general(const Problem& problem, Configs& configs);
void plan_grouped_forward_nhwc(const Problem& problem, Configs& configs);
void plan_grouped_forward_narrow_nhwc(const Problem& problem, Configs& configs);
void plan_grouped_forward_wgmma_nhwc(const Problem& problem, Configs& configs);
void plan_grouped_backward_input_general(const Problem& problem, Configs& configs);
void plan_grouped_backward_input_nhwc(const Problem& problem, Configs& configs);
void plan_grouped_backward_input_narrow_nhwc(const Problem& problem, Configs& configs);
void plan_grouped_backward_input_wgmma_nhwc(const Problem& problem, Configs& configs);
void plan_grouped_backward_weight_general(const Problem& problem, Configs& configs);
void plan_grouped_backward_weight_nhwc(const Problem& problem, Configs& configs);
void plan_grouped_backward_weight_narrow_nhwc(const Problem& problem, Configs& configs);

/// The x dimension of a grid holds 2^31 - 1 blocks; y and z hold 65535.
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxGridYZ = 65535;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A thread an element, for the kernels of last resort; past the largest grid a thread takes several.
LaunchConfig thread_per_element(Kernel kernel, int64_t elements);

/// Bytes of an element.
constexpr int size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace cnnext::cuda
