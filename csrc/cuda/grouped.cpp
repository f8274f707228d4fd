// Calls the kernels that a configuration names.
#include "kernels.h"

namespace cnnext::cuda {
namespace {

/// The filter as [K][R][S][C / groups], after a launch that copies it if it does not lie like that.
const void* packed_filter(const ConvParams& params, const LaunchConfig& config, const void* w, void* workspace,
                          Stream stream) {
  if (!config.packs_filter) return w;
  grouped_pack_filter(params, w, workspace, stream);
  return workspace;
}

}  // namespace

void grouped_forward(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last, const void* x,
                     const void* w, const void* bias, void* y, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedForwardNhwc) {
    grouped_forward_nhwc(params, config, x, packed_filter(params, config, w, workspace, stream), bias, y, stream);
  } else {
    grouped_forward_general(params, config, filter_channels_last, x, w, bias, y, stream);
  }
}

void grouped_backward_input(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                            const void* dy, const void* w, void* dx, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedBackwardInputNhwc) {
    grouped_backward_input_nhwc(params, config, dy, packed_filter(params, config, w, workspace, stream), dx, stream);
  } else {
    grouped_backward_input_general(params, config, filter_channels_last, dy, w, dx, stream);
  }
}

void grouped_backward_weight(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                             const void* dy, const void* x, void* dw, void* dbias, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedBackwardWeightNhwc) {
    auto* sums = static_cast<float*>(workspace);
    grouped_backward_weight_nhwc(params, config, dy, x, dbias != nullptr, sums, stream);
    grouped_backward_weight_reduce(params, config.parts, filter_channels_last, sums, dw, dbias, stream);
  } else {
    grouped_backward_weight_general(params, config, filter_channels_last, dy, x, dw, dbias, stream);
  }
}

}  // namespace cnnext::cuda
