// Plans a call and writes down what it launches; a C interface for bench/static_report/launches.py.
#include <dlfcn.h>

#include <string>

#include "../../../csrc/cuda/kernels.h"
#include "../../../csrc/cuda/launch_config.h"
#include "../../../csrc/cuda/separable.h"
#include "emulator.h"

namespace {

using namespace cnnext;
using namespace cnnext::cuda;

/// Addresses of operands: far apart, aligned, and never accessed.
void* operand(int index) { return reinterpret_cast<void*>((uintptr_t{1} << 40) + (uintptr_t(index) << 36)); }

Problem read_problem(const int64_t* v) {
  Problem problem;
  ConvParams& p = problem.params;
  p.N = v[0], p.C = v[1], p.H = v[2], p.W = v[3], p.K = v[4], p.R = v[5], p.S = v[6], p.P = v[7], p.Q = v[8];
  p.groups = v[9];
  p.stride_h = v[10], p.stride_w = v[11], p.pad_h = v[12], p.pad_w = v[13], p.dilation_h = v[14], p.dilation_w = v[15];
  p.x_strides = {v[16], v[17], v[18], v[19]};
  p.y_strides = {v[20], v[21], v[22], v[23]};
  p.layout = static_cast<Layout>(v[24]);
  p.dtype = static_cast<DType>(v[25]);
  p.activation = Activation::kNone;
  problem.device.multiprocessors = static_cast<int>(v[26]);
  problem.device.threads_per_multiprocessor = static_cast<int>(v[27]);
  problem.device.shared_bytes_per_multiprocessor = static_cast<int>(v[28]);
  problem.device.shared_bytes_per_block = static_cast<int>(v[29]);
  return problem;
}

std::string describe(const static_report::Launch& launch) {
  Dl_info info;
  if (dladdr(launch.kernel, &info) == 0) return "";
  const auto offset = reinterpret_cast<uintptr_t>(launch.kernel) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  std::string text = "launch " + std::to_string(offset);
  for (const dim3& size : {launch.grid, launch.block}) {
    text += " " + std::to_string(size.x) + " " + std::to_string(size.y) + " " + std::to_string(size.z);
  }
  text += " " + std::to_string(launch.shared_bytes) + " ";
  for (const unsigned char byte : launch.parameters) {
    for (const int digit : {byte >> 4, byte & 15}) text += "0123456789abcdef"[digit];
  }
  return text + "\n";
}

}  // namespace

/// `op`: 0 forward, 1 backward_input, 2 backward_weight of a depthwise convolution, 3 to 5 those of a grouped one,
/// whose filter lies in channels_last as the activations do. `values`: see read_problem. `choice`: which of the
/// planner's configurations. Returns the configuration and a line for each launch; an empty text if there are not so
/// many configurations. Valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* cnnext_record(int op, const int64_t* values, int choice) {
  static std::string text;
  text.clear();
  static_report::launches.clear();
  Problem problem = read_problem(values);
  const ConvParams& params = problem.params;
  const bool filter_channels_last = params.layout == Layout::kNHWC;
  problem.filter_channels_last = filter_channels_last;
  using Planner = Configs (*)(const Problem&);
  constexpr Planner kPlanners[] = {depthwise_forward_configs,         depthwise_backward_input_configs,
                                   depthwise_backward_weight_configs, grouped_forward_configs,
                                   grouped_backward_input_configs,    grouped_backward_weight_configs};
  const Configs configs = kPlanners[op](problem);
  if (choice >= static_cast<int>(configs.size())) return text.c_str();
  const LaunchConfig& config = configs[choice];
  void *x = operand(0), *w = operand(1), *y = operand(2), *workspace = operand(3);
  switch (op) {
    case 0: depthwise_forward(params, config, x, w, nullptr, y, nullptr); break;
    case 1: depthwise_backward_input(params, config, y, w, x, nullptr); break;
    case 2: depthwise_backward_weight(params, config, y, x, w, nullptr, workspace, nullptr); break;
    case 3: grouped_forward(params, config, filter_channels_last, x, w, nullptr, y, workspace, nullptr); break;
    case 4: grouped_backward_input(params, config, filter_channels_last, y, w, x, workspace, nullptr); break;
    default: grouped_backward_weight(params, config, filter_channels_last, y, x, w, nullptr, workspace, nullptr);
  }
  text = "config " + config.to_string() + "\n";
  for (const static_report::Launch& launch : static_report::launches) text += describe(launch);
  return text.c_str();
}

/// The same for a depthwise-separable block, channels_last and dense. `values`: those of read_problem for its depthwise
/// half, and then: outputs, whether TF32 is allowed, bytes of the L2 cache, clock in MHz, bandwidth of a copy in GB/s.
extern "C" __attribute__((visibility("default"))) const char* cnnext_record_separable(const int64_t* values,
                                                                                      int choice) {
  static std::string text;
  text.clear();
  static_report::launches.clear();
  const Problem depthwise = read_problem(values);
  const int64_t* more = values + 30;
  SeparableProblem problem;
  problem.depthwise = depthwise.params, problem.device = depthwise.device;
  problem.depthwise.activation = problem.activation = Activation::kRelu6;
  problem.outputs = more[0], problem.allow_tf32 = more[1] != 0;
  problem.device.l2_bytes = more[2];
  problem.device.clock_ghz = static_cast<double>(more[3]) / 1e3;
  problem.device.copy_gigabytes_per_second = static_cast<double>(more[4]);
  const int64_t k = problem.outputs, q = problem.depthwise.Q, p = problem.depthwise.P;
  problem.y_strides = {p * q * k, 1, q * k, k};
  const std::vector<SeparableConfig> configs = separable_configs(problem);
  if (choice >= static_cast<int>(configs.size())) return text.c_str();
  const SeparableOperands operands{operand(0), operand(1), operand(2), operand(3), operand(4), nullptr, operand(5)};
  separable(problem, configs[choice], operands, operand(6), nullptr);
  text = "config " + configs[choice].to_string() + "\n";
  for (const static_report::Launch& launch : static_report::launches) text += describe(launch);
  return text.c_str();
}
