// Configurations of depthwise_backward_input_nchw.cu: which problems it runs, and with what tile
// (depthwise_nchw_tile.h).
#include "depthwise_nchw_tile.h"

namespace cnnext::cuda {

void plan_depthwise_backward_input_nchw(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  if (!runs_nchw(p) || p.K != p.C) return;
  LaunchConfig config{.kernel = Kernel::kDepthwiseBackwardInputNchw};
  bool fits = false;
  if (p.stride_h == 1) {
    Problem forward = problem;
    forward.params = turned_round(p);
    fits = choose_tile_nchw(forward, {p.C, p.H, p.W}, forward_nchw_patch(p.R), forward_nchw_tile, config);
  } else {
    fits = choose_tile_nchw(problem, {p.C, p.H, p.W}, backward_input_nchw_patch(), backward_input_nchw_tile, config);
  }
  if (fits) configs.push_back(config);
}

}  // namespace cnnext::cuda
