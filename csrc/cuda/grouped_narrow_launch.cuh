// Launches the kernel for narrow groups.
#pragma once

#include "grouped_narrow_nhwc.cuh"
#include "grouped_nhwc.cuh"

namespace cnnext::cuda {

/// Calls f(std::integral_constant<int, width>()) for one of the widths that the planner allows.
template <class F>
void dispatch_width(int64_t width, F f) {
  switch (width) {
    case 4: return f(std::integral_constant<int, 4>());
    case 8: return f(std::integral_constant<int, 8>());
    case 16: return f(std::integral_constant<int, 16>());
    default: return f(std::integral_constant<int, 32>());
  }
}

template <TileOrder kFilterOrder>
void launch_narrow(const ConvParams& p, const LaunchConfig& config, const GemmOperands& op, const GemmAxes& axes,
                   Stream stream) {
  NarrowGrid grid;
  const auto outputs = [](const TapAxis& axis) { return axis.outputs; };
  grid.tiles_h = static_cast<int>(ceil_div(largest(axes.h, axes.classes_h, outputs), NarrowTile::kH));
  grid.tiles_w = static_cast<int>(ceil_div(largest(axes.w, axes.classes_w, outputs), NarrowTile::kW));
  grid.halo_h = largest(axes.h, axes.classes_h, [](const TapAxis& axis) { return halo_of(axis, NarrowTile::kH); });
  grid.halo_w = largest(axes.w, axes.classes_w, [](const TapAxis& axis) { return halo_of(axis, NarrowTile::kW); });
  grid.bundles = static_cast<int>(ceil_div(p.C, NarrowTile::kN));
  const dim3 blocks(static_cast<unsigned>(config.grid[0]), 1, static_cast<unsigned>(config.grid[2]));
  dispatch_width(p.channels_per_group(), [&](auto width) {
    const auto run = [&](auto element) {
      launch(grouped_narrow_nhwc_kernel<decltype(element), width(), kFilterOrder>, blocks, dim3(NarrowTile::kThreads),
             config.shared_bytes, stream, op, axes, grid, static_cast<int>(p.C));
    };
    p.dtype == DType::kFloat16 ? run(__half()) : run(__nv_bfloat16());
  });
}

}  // namespace cnnext::cuda
