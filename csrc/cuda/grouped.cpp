// Calls the kernels that a configuration names, and before and after them those that bring operands into the order that
// they want, by way of the workspace.
#include "kernels.h"

namespace cnnext::cuda {
namespace {

/// One call's workspace, and the operands as a channels_last kernel takes them.
struct Operands {
  const ConvParams& original;
  const LaunchConfig& config;
  unsigned char* workspace;
  Stream stream;
  GroupedWorkspace at;
  ConvParams params;  // of what the kernel sees

  Operands(const ConvParams& p, const LaunchConfig& launch_config, void* memory, Stream on)
      : original(p),
        config(launch_config),
        workspace(static_cast<unsigned char*>(memory)),
        stream(on),
        at(grouped_workspace(p, launch_config)),
        params(p) {
    if (!config.converts) return;
    params.layout = Layout::kNHWC;
    params.x_strides = {p.H * p.W * p.C, 1, p.W * p.C, p.C};
    params.y_strides = {p.P * p.Q * p.K, 1, p.Q * p.K, p.K};
  }

  Activations x_planes() const { return {original.N, original.C, original.H, original.W, original.x_strides}; }
  Activations y_planes() const { return {original.N, original.K, original.P, original.Q, original.y_strides}; }

  const void* input(const Activations& planes, int64_t offset, const void* data) const {
    if (!config.converts) return data;
    to_channels_last(original.dtype, planes, data, workspace + offset, stream);
    return workspace + offset;
  }

  /// Where the kernel writes a result that belongs at `data`; `finish` brings it there.
  void* output(int64_t offset, void* data) const { return config.converts ? workspace + offset : data; }
  void finish(const Activations& planes, int64_t offset, void* data) const {
    if (config.converts) from_channels_last(original.dtype, planes, workspace + offset, data, stream);
  }

  const void* filter(const void* w) const {
    if (!config.packs_filter) return w;
    grouped_pack_filter(original, w, workspace + at.filter, stream);
    return workspace + at.filter;
  }
};

}  // namespace

void grouped_forward(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last, const void* x,
                     const void* w, const void* bias, void* y, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedForwardGeneral) {
    return grouped_forward_general(params, config, filter_channels_last, x, w, bias, y, stream);
  }
  const Operands operands(params, config, workspace, stream);
  const void* input = operands.input(operands.x_planes(), operands.at.x, x);
  const auto kernel =
      config.kernel == Kernel::kGroupedForwardNarrowNhwc ? grouped_forward_narrow_nhwc : grouped_forward_nhwc;
  kernel(operands.params, config, input, operands.filter(w), bias, operands.output(operands.at.y, y), stream);
  operands.finish(operands.y_planes(), operands.at.y, y);
}

void grouped_backward_input(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                            const void* dy, const void* w, void* dx, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedBackwardInputGeneral) {
    return grouped_backward_input_general(params, config, filter_channels_last, dy, w, dx, stream);
  }
  const Operands operands(params, config, workspace, stream);
  const void* gradient = operands.input(operands.y_planes(), operands.at.y, dy);
  const auto kernel = config.kernel == Kernel::kGroupedBackwardInputNarrowNhwc ? grouped_backward_input_narrow_nhwc
                                                                               : grouped_backward_input_nhwc;
  kernel(operands.params, config, gradient, operands.filter(w), operands.output(operands.at.x, dx), stream);
  operands.finish(operands.x_planes(), operands.at.x, dx);
}

void grouped_backward_weight(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                             const void* dy, const void* x, void* dw, void* dbias, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedBackwardWeightGeneral) {
    return grouped_backward_weight_general(params, config, filter_channels_last, dy, x, dw, dbias, stream);
  }
  const Operands operands(params, config, workspace, stream);
  const void* gradient = operands.input(operands.y_planes(), operands.at.y, dy);
  const void* input = operands.input(operands.x_planes(), operands.at.x, x);
  auto* sums = reinterpret_cast<float*>(operands.workspace + operands.at.sums);
  const auto kernel = config.kernel == Kernel::kGroupedBackwardWeightNarrowNhwc ? grouped_backward_weight_narrow_nhwc
                                                                                : grouped_backward_weight_nhwc;
  kernel(operands.params, config, gradient, input, dbias != nullptr, sums, stream);
  grouped_backward_weight_reduce(params, config.parts, filter_channels_last, sums, dw, dbias, stream);
}

}  // namespace cnnext::cuda
