// Grouped convolution (dense: one group; 1x1: one tap), forward, channels_last, 16-bit, on sm_90a: what
// grouped_forward_nhwc.cu computes, by tensor copies and wgmma (implicit_gemm_wgmma.cuh).
#include "grouped_wgmma_nhwc.cuh"

namespace cnnext::cuda {

void grouped_forward_wgmma_nhwc(const ConvParams& p, const LaunchConfig& config, const void* x, const void* w,
                                const void* bias, void* y, Stream stream) {
  launch_implicit_gemm_wgmma<TileOrder::kLines>(p, config, forward_operands(p, x, w, bias, y), forward_axes(p), p.C,
                                                stream);
}

}  // namespace cnnext::cuda
