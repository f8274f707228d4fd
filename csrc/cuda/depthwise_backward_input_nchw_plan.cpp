// Configurations of depthwise_backward_input_nchw.cu: which problems it runs, and with what tile
// (depthwise_nchw_tile.h).
#include "depthwise_nchw_tile.h"

namespace cnnext::cuda {

void plan_depthwise_backward_input_nchw(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  if (!runs_nchw(p) || p.K != p.C) return;
  constexpr Kernel kKernel = Kernel::kDepthwiseBackwardInputNchw;
  const Planes dx{p.C, p.H, p.W};
  if (p.stride_h == 1) {
    Problem forward = problem;
    forward.params = turned_round(p);
    append_tiles_nchw(kKernel, forward, dx, forward_nchw_patch(p.R), forward_nchw_tile, configs);
  } else {
    append_tiles_nchw(kKernel, problem, dx, backward_input_nchw_patch(), backward_input_nchw_tile, configs);
  }
}

}  // namespace cnnext::cuda
