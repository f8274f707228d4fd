// Calls the kernel that a configuration names.
#include "kernels.h"

namespace cnnext::cuda {

void depthwise_forward(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                       const void* bias, void* y, Stream stream) {
  switch (config.kernel) {
    case Kernel::kDepthwiseForwardNhwc: return depthwise_forward_nhwc(params, config, x, w, bias, y, stream);
    case Kernel::kDepthwiseForwardNchw: return depthwise_forward_nchw(params, config, x, w, bias, y, stream);
    default: return depthwise_forward_general(params, config, x, w, bias, y, stream);
  }
}

void depthwise_backward_input(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w,
                              void* dx, Stream stream) {
  switch (config.kernel) {
    case Kernel::kDepthwiseBackwardInputNhwc: return depthwise_backward_input_nhwc(params, config, dy, w, dx, stream);
    case Kernel::kDepthwiseBackwardInputNchw: return depthwise_backward_input_nchw(params, config, dy, w, dx, stream);
    default: return depthwise_backward_input_general(params, config, dy, w, dx, stream);
  }
}

void depthwise_backward_weight(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x,
                               void* dw, void* dbias, void* workspace, Stream stream) {
  switch (config.kernel) {
    case Kernel::kDepthwiseBackwardWeightNhwc:
      return depthwise_backward_weight_nhwc(params, config, dy, x, dw, dbias, workspace, stream);
    case Kernel::kDepthwiseBackwardWeightNchw:
      return depthwise_backward_weight_nchw(params, config, dy, x, dw, dbias, workspace, stream);
    default: return depthwise_backward_weight_general(params, config, dy, x, dw, dbias, workspace, stream);
  }
}

}  // namespace cnnext::cuda
