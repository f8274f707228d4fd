// What the planners of the depthwise weight gradients share: into how many parts a problem is cut.
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch_config.h"

namespace cnnext::cuda {

/// The workspace, written and read, may add this fraction of the bytes of x and dy.
constexpr double kWorkspaceFraction = 0.06;

/// Parts that the workspace's traffic allows; at least one.
inline int64_t affordable_parts(const ConvParams& p) {
  const double bytes = static_cast<double>(p.N) * p.K * (p.H * p.W + p.P * p.Q) * size_of(p.dtype);
  const double part_bytes = 2.0 * (p.R * p.S + 1) * p.K * 4;
  return std::max<int64_t>(1, static_cast<int64_t>(kWorkspaceFraction * bytes / part_bytes));
}

/// `length` in equal pieces of at most `most`.
inline int64_t even_piece(int64_t length, int64_t most) { return ceil_div(length, ceil_div(length, most)); }

}  // namespace cnnext::cuda
