#include "launch_config.h"

#include <algorithm>

namespace cnnext::cuda {

const char* to_string(Kernel kernel) {
  switch (kernel) {
    case Kernel::kDepthwiseForwardGeneral: return "depthwise_forward_general";
    case Kernel::kDepthwiseForwardNhwc: return "depthwise_forward_nhwc";
    case Kernel::kDepthwiseForwardNchw: return "depthwise_forward_nchw";
    case Kernel::kDepthwiseBackwardInputGeneral: return "depthwise_backward_input_general";
    case Kernel::kDepthwiseBackwardInputNhwc: return "depthwise_backward_input_nhwc";
    case Kernel::kDepthwiseBackwardInputNchw: return "depthwise_backward_input_nchw";
    case Kernel::kDepthwiseBackwardWeightGeneral: return "depthwise_backward_weight_general";
    case Kernel::kDepthwiseBackwardWeightNhwc: return "depthwise_backward_weight_nhwc";
    case Kernel::kDepthwiseBackwardWeightNchw: return "depthwise_backward_weight_nchw";
    case Kernel::kGroupedForwardGeneral: return "grouped_forward_general";
    case Kernel::kGroupedForwardNhwc: return "grouped_forward_nhwc";
    case Kernel::kGroupedForwardNarrowNhwc: return "grouped_forward_narrow_nhwc";
    case Kernel::kGroupedForwardWgmmaNhwc: return "grouped_forward_wgmma_nhwc";
    case Kernel::kGroupedBackwardInputGeneral: return "grouped_backward_input_general";
    case Kernel::kGroupedBackwardInputNhwc: return "grouped_backward_input_nhwc";
    case Kernel::kGroupedBackwardInputNarrowNhwc: return "grouped_backward_input_narrow_nhwc";
    case Kernel::kGroupedBackwardInputWgmmaNhwc: return "grouped_backward_input_wgmma_nhwc";
    case Kernel::kGroupedBackwardWeightGeneral: return "grouped_backward_weight_general";
    case Kernel::kGroupedBackwardWeightNhwc: return "grouped_backward_weight_nhwc";
    case Kernel::kGroupedBackwardWeightNarrowNhwc: return "grouped_backward_weight_narrow_nhwc";
    case Kernel::kSeparableNhwc: return "separable_nhwc";
  }
  return "unknown";
}

std::string LaunchConfig::to_string() const {
  std::string text = cuda::to_string(kernel);
  const auto triple = [&](const char* name, const auto& values) {
    text += std::string(name) + std::to_string(values[0]) + "x" + std::to_string(values[1]) + "x" +
            std::to_string(values[2]);
  };
  triple(" grid=", grid);
  triple(" block=", block);
  const auto field = [&](const char* name, int value) {
    if (value != 0) text += std::string(" ") + name + "=" + std::to_string(value);
  };
  field("shared_bytes", shared_bytes);
  field("tile_h", tile_h);
  field("tile_w", tile_w);
  field("vector", vector);
  field("columns", columns);
  field("planes", planes);
  field("parts", parts);
  if (tf32) text += " tf32";
  if (packs_filter) text += " packs_filter";
  if (converts) text += " converts";
  field("padded_channels", padded_channels);
  field("padded_outputs", padded_outputs);
  return text;
}

LaunchConfig thread_per_element(Kernel kernel, int64_t elements) {
  constexpr int kThreads = 256;
  LaunchConfig config;
  config.kernel = kernel;
  config.grid[0] = std::min(ceil_div(elements, kThreads), kMaxGridX);
  config.block[0] = kThreads;
  return config;
}

Configs depthwise_forward_configs(const Problem& problem) {
  Configs configs;
  plan_depthwise_forward_nhwc(problem, configs);
  plan_depthwise_forward_nchw(problem, configs);
  plan_depthwise_forward_general(problem, configs);
  return configs;
}

Configs depthwise_backward_input_configs(const Problem& problem) {
  Configs configs;
  plan_depthwise_backward_input_nhwc(problem, configs);
  plan_depthwise_backward_input_nchw(problem, configs);
  plan_depthwise_backward_input_general(problem, configs);
  return configs;
}

Configs depthwise_backward_weight_configs(const Problem& problem) {
  Configs configs;
  plan_depthwise_backward_weight_nhwc(problem, configs);
  plan_depthwise_backward_weight_nchw(problem, configs);
  plan_depthwise_backward_weight_general(problem, configs);
  return configs;
}

Configs grouped_forward_configs(const Problem& problem) {
  Configs configs;
  plan_grouped_forward_narrow_nhwc(problem, configs);
  plan_grouped_forward_nhwc(problem, configs);
  plan_grouped_forward_wgmma_nhwc(problem, configs);
  plan_grouped_forward_general(problem, configs);
  return configs;
}

Configs grouped_backward_input_configs(const Problem& problem) {
  Configs configs;
  plan_grouped_backward_input_narrow_nhwc(problem, configs);
  plan_grouped_backward_input_nhwc(problem, configs);
  plan_grouped_backward_input_wgmma_nhwc(problem, configs);
  plan_grouped_backward_input_general(problem, configs);
  return configs;
}

Configs grouped_backward_weight_configs(const Problem& problem) {
  Configs configs;
  plan_grouped_backward_weight_narrow_nhwc(problem, configs);
  plan_grouped_backward_weight_nhwc(problem, configs);
  plan_grouped_backward_weight_general(problem, configs);
  return configs;
}

GroupedWorkspace grouped_workspace(const ConvParams& p, const LaunchConfig& config) {
  GroupedWorkspace workspace;
  const auto reserve = [&](int64_t bytes) {
    const int64_t at = workspace.bytes;
    workspace.bytes += ceil_div(bytes, 16) * 16;
    return at;
  };
  const int64_t channels = channels_in_memory(p.C, config.padded_channels);
  const int64_t outputs = channels_in_memory(p.K, config.padded_outputs);
  const int64_t input_elements = p.N * channels * p.H * p.W, output_elements = p.N * outputs * p.P * p.Q;
  const int64_t filter = p.K * (channels / p.groups) * p.R * p.S;
  if (config.converts || config.padded_channels > 0) {
    workspace.x = reserve(input_elements * size_of(p.dtype));
  }
  if (config.converts || config.padded_outputs > 0) workspace.y = reserve(output_elements * size_of(p.dtype));
  if (config.packs_filter) workspace.filter = reserve(filter * size_of(p.dtype));
  if (config.parts > 0) {
    const int64_t summed = config.kernel == Kernel::kGroupedForwardNhwc         ? output_elements
                           : config.kernel == Kernel::kGroupedBackwardInputNhwc ? input_elements
                                                                                : filter + p.K;
    workspace.sums = reserve(config.parts * summed * 4);
  }
  return workspace;
}

int64_t workspace_bytes(const Problem& problem, const LaunchConfig& config) {
  const ConvParams& p = problem.params;
  if (config.converts || config.packs_filter || config.kernel >= Kernel::kGroupedForwardGeneral) {
    return grouped_workspace(p, config).bytes;
  }
  return config.parts * p.K * (p.R * p.S + 1) * (p.dtype == DType::kFloat64 ? 8 : 4);
}

}  // namespace cnnext::cuda
