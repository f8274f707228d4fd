// From a problem and its configuration to an instance of the wgmma kernel: tensor maps and tiles.
#pragma once

#include "grouped_nhwc.cuh"
#include "implicit_gemm_wgmma.cuh"

namespace cnnext::cuda {

// Two blocks of the smaller tile share an SM, so that one multiplies while the other starts or stores.
using WgmmaTile128x128 = WgmmaTile<128, 3, 2>;
using WgmmaTile128x256 = WgmmaTile<256, 4, 1>;

/// The walk over the source of one class of outputs; `channels` are those of all groups.
inline PixelColumns source_columns(const GemmOperands& op, const TapAxis& axis_h, const TapAxis& axis_w,
                                   int64_t channels, int pixels) {
  PixelColumns columns{};
  columns.address = op.source;
  columns.channels = channels, columns.width = axis_w.size, columns.height = axis_h.size, columns.images = op.images;
  columns.stride_w = op.source_w, columns.stride_h = op.source_h, columns.stride_n = op.source_n;
  columns.lower_w = lowest_tap(axis_w), columns.lower_h = lowest_tap(axis_h);
  columns.step_w = axis_w.step, columns.step_h = axis_h.step;
  columns.outputs_w = axis_w.outputs, columns.outputs_h = axis_h.outputs;
  columns.pixels = pixels;
  return columns;
}

/// `lines`: of a tile of the filter that one copy brings.
inline GemmTensorMaps make_tensor_maps(const ConvParams& p, const GemmOperands& op, const GemmAxes& axes,
                                       int64_t source_channels, int pixels, int lines) {
  GemmTensorMaps maps{};
  const int64_t filter_channels = op.filter_w;
  maps.filter = make_tensor_map(
      TiledTensor{op.filter, {filter_channels, p.R * p.S, p.K}, {filter_channels, p.R * p.S * filter_channels}, lines},
      p.dtype);
  for (int i = 0; i < axes.classes_h; ++i) {
    for (int j = 0; j < axes.classes_w; ++j) {
      const TapAxis &h = axes.h[i], &w = axes.w[j];
      // Blocks of a class without outputs or taps copy nothing.
      if (h.outputs == 0 || w.outputs == 0 || h.taps == 0 || w.taps == 0) continue;
      const PixelColumns columns = source_columns(op, h, w, source_channels, pixels);
      maps.source[i * axes.classes_w + j] = {make_tensor_map(columns, p.dtype), columns.lower_h, columns.lower_w};
    }
  }
  return maps;
}

template <TileOrder kFilterOrder>
void launch_implicit_gemm_wgmma(const ConvParams& p, const LaunchConfig& config, const GemmOperands& op,
                                const GemmAxes& axes, int64_t source_channels, Stream stream) {
  const auto run = [&](auto element, auto tile) {
    using T = decltype(element);
    using Tile = decltype(tile);
    const int lines = kFilterOrder == TileOrder::kLines ? Tile::kN : kTensorMapLine;
    const GemmTensorMaps maps = make_tensor_maps(p, op, axes, source_channels, Tile::kM, lines);
    launch(implicit_gemm_wgmma_kernel<T, Tile, kFilterOrder>, grid_of(config), dim3(Tile::kThreads),
           config.shared_bytes, stream, op, axes, maps);
  };
  const auto with_tile = [&](auto element) {
    if (config.tile_w == 128) return run(element, WgmmaTile128x128());
    run(element, WgmmaTile128x256());
  };
  if (p.dtype == DType::kFloat16) return with_tile(__half());
  with_tile(__nv_bfloat16());
}

}  // namespace cnnext::cuda
