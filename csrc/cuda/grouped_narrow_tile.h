// Shape of a block of the kernels for narrow groups (grouped_narrow_nhwc.cuh, grouped_narrow_weight_nhwc.cuh), shared
// with their planner.
#pragma once

#include "tap_axis.h"

namespace cnnext::cuda {

struct NarrowTile {
  static constexpr int kH = 8, kW = 16;  // output pixels
  static constexpr int kM = kH * kW, kN = 64;
  static constexpr int kThreads = 128;
  static constexpr int kWarpRows = kH / (kThreads / 32);  // rows of pixels of a warp
  static constexpr int kResultPitch = kN + 8;             // floats
  static constexpr int kResultBytes = kM * kResultPitch * 4;
};

/// Source positions of an axis that `outputs` neighbouring outputs need.
constexpr int halo_of(const TapAxis& axis, int outputs) {
  const int reach = (axis.taps > 0 ? axis.taps - 1 : 0) * (axis.tap_step < 0 ? -axis.tap_step : axis.tap_step);
  return (outputs - 1) * axis.step + reach + 1;
}

/// Channels of a square of the filter that is multiplied whole: groups of 4 go in pairs.
template <int kWidth>
constexpr int kSquare = kWidth < 8 ? 8 : kWidth;

/// Bytes of one tap of 64 channels' filter in shared memory.
template <int kWidth>
constexpr int kNarrowTapBytes = NarrowTile::kN * kSquare<kWidth> * 2;

}  // namespace cnnext::cuda
