// Grouped convolution, gradient with respect to the input, channels_last, 16-bit, on sm_90a: what
// grouped_backward_input_nhwc.cu computes, by tensor copies and wgmma (implicit_gemm_wgmma.cuh). The filter stays as it
// is: wgmma reads a tile of it with the columns along the lines.
#include "grouped_wgmma_nhwc.cuh"

namespace cnnext::cuda {

void grouped_backward_input_wgmma_nhwc(const ConvParams& p, const LaunchConfig& config, const void* dy, const void* w,
                                       void* dx, Stream stream) {
  launch_implicit_gemm_wgmma<TileOrder::kPanels>(p, config, backward_operands(p, dy, w, dx), backward_axes(p), p.K,
                                                 stream);
}

}  // namespace cnnext::cuda
