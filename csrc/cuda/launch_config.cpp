#include "launch_config.h"

#include <algorithm>

namespace cnnext::cuda {
namespace {

// The x dimension of a grid holds 2^31 - 1 blocks.
constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

}  // namespace

std::string LaunchConfig::to_string() const {
  return "LaunchConfig(blocks=" + std::to_string(blocks) + ", threads=" + std::to_string(threads) + ")";
}

LaunchConfig plan_depthwise_forward_general(const ConvParams& params) {
  constexpr int kThreads = 256;
  const int64_t outputs = params.N * params.K * params.P * params.Q;
  return {std::min((outputs + kThreads - 1) / kThreads, kMaxBlocks), kThreads};
}

}  // namespace cnnext::cuda
