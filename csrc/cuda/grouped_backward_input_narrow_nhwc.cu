// Grouped convolution with narrow groups, gradient with respect to the input, channels_last: see
// grouped_narrow_nhwc.cuh. With stride 2 each class of positions of dx is reached by its own taps, as in
// grouped_backward_input_nhwc.
#include "grouped_narrow_launch.cuh"

namespace cnnext::cuda {

void grouped_backward_input_narrow_nhwc(const ConvParams& p, const LaunchConfig& config, const void* dy, const void* w,
                                        void* dx, Stream stream) {
  launch_narrow<TileOrder::kPanels>(p, config, backward_operands(p, dy, w, dx), backward_axes(p), stream);
}

}  // namespace cnnext::cuda
