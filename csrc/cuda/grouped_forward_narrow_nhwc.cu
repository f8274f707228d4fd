// Grouped convolution with narrow groups, forward, channels_last: see grouped_narrow_nhwc.cuh.
#include "grouped_narrow_launch.cuh"

namespace cnnext::cuda {

void grouped_forward_narrow_nhwc(const ConvParams& p, const LaunchConfig& config, const void* x, const void* w,
                                 const void* bias, void* y, Stream stream) {
  launch_narrow<TileOrder::kLines>(p, config, forward_operands(p, x, w, bias, y), forward_axes(p), stream);
}

}  // namespace cnnext::cuda
