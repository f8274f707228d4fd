// Configurations of the kernels of last resort, which run every problem.
#include <algorithm>

#include "launch_config.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;

}  // namespace

void plan_depthwise_forward_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  configs.push_back(thread_per_element(Kernel::kDepthwiseForwardGeneral, p.N * p.K * p.P * p.Q));
}

void plan_depthwise_backward_input_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  configs.push_back(thread_per_element(Kernel::kDepthwiseBackwardInputGeneral, p.N * p.C * p.H * p.W));
}

/// A block sums one of `parts` parts of the pixels (n, p, q) for one tap of tile_w channels.
void plan_depthwise_backward_weight_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  // In NHWC a warp reads one pixel of 32 channels, in NCHW neighbouring pixels of one.
  const int channels = p.layout == Layout::kNHWC ? 32 : 1;
  const int64_t blocks_a_part = ceil_div(p.K, channels) * (p.R * p.S + 1);
  // Enough blocks for four rounds on the device, but at least 32 pixels a thread: a part costs a read and a write of
  // all sums.
  const int64_t most = ceil_div(p.N * p.P * p.Q, 32 * kThreads / channels);
  const int64_t resident =
      int64_t{problem.device.multiprocessors} * problem.device.threads_per_multiprocessor / kThreads;
  const int64_t parts = std::clamp<int64_t>(ceil_div(4 * resident, blocks_a_part), 1, most);
  configs.push_back({.kernel = Kernel::kDepthwiseBackwardWeightGeneral,
                     .grid = {std::min(blocks_a_part * parts, kMaxGridX), 1, 1},
                     .block = {kThreads, 1, 1},
                     .tile_w = channels,
                     .parts = static_cast<int>(parts)});
}

}  // namespace cnnext::cuda
