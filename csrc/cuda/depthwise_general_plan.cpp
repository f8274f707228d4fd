// Configurations of the kernels of last resort, which run every problem.
#include <algorithm>

#include "launch_config.h"

namespace cnnext::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread an element; past the largest grid a thread takes several.
LaunchConfig thread_per_element(Kernel kernel, int64_t elements) {
  return {.kernel = kernel, .grid = {std::min(ceil_div(elements, kThreads), kMaxGridX), 1, 1}, .block = {kThreads, 1, 1}};
}

}  // namespace

void plan_depthwise_forward_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  configs.push_back(thread_per_element(Kernel::kDepthwiseForwardGeneral, p.N * p.K * p.P * p.Q));
}

void plan_depthwise_backward_input_general(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  configs.push_back(thread_per_element(Kernel::kDepthwiseBackwardInputGeneral, p.N * p.C * p.H * p.W));
}

/// A block sums a part of the pixels (n, p, q) for one tap of one channel.
void plan_depthwise_backward_weight_general(const Problem& problem, Configs& configs) {
  (void)problem;
  (void)configs;
}

}  // namespace cnnext::cuda
