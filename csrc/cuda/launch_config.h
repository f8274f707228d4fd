// Grid and block of each kernel, chosen on the host from the problem alone: printable, and testable without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "../conv_params.h"

namespace cnnext::cuda {

struct LaunchConfig {
  int64_t blocks;
  int threads;  // a block

  std::string to_string() const;
};

/// One thread an output; past the largest grid a thread takes several.
LaunchConfig plan_depthwise_forward_general(const ConvParams& params);

}  // namespace cnnext::cuda
