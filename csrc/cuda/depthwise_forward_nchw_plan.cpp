// Configurations of depthwise_forward_nchw.cu: which problems it runs, and with what tile (depthwise_nchw_tile.h).
#include "depthwise_nchw_tile.h"

namespace cnnext::cuda {

void plan_depthwise_forward_nchw(const Problem& problem, Configs& configs) {
  const ConvParams& p = problem.params;
  if (!runs_nchw(p)) return;
  append_tiles_nchw(Kernel::kDepthwiseForwardNchw, problem, {p.K, p.P, p.Q}, forward_nchw_patch(p.R), forward_nchw_tile,
                    configs);
}

}  // namespace cnnext::cuda
