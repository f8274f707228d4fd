// Axes of taps (TapAxis) of a convolution and of its input gradient. Host only, so the planners have them too.
#pragma once

#include <cstdint>

#include "../conv_params.h"
#include "launch_config.h"
#include "tap_axis.h"

namespace cnnext::cuda {

/// Outputs of a convolution, and the taps each of them meets.
inline TapAxis forward_axis(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t pad,
                            int64_t dilation) {
  TapAxis axis;
  axis.outputs = static_cast<int>(outputs), axis.taps = static_cast<int>(taps), axis.size = static_cast<int>(size);
  axis.step = static_cast<int>(stride), axis.first = static_cast<int>(-pad);
  axis.tap_step = static_cast<int>(dilation);
  return axis;
}

/// The positions of the input that are `remainder` modulo the stride (1 or 2), and the outputs that each of them went
/// into. Position remainder + i * stride met tap r as output i + (remainder + pad - r * dilation) / stride, for those r
/// with which the division leaves no rest: every second one, all or none.
inline TapAxis backward_axis(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                             int64_t remainder) {
  TapAxis axis;
  axis.outputs = static_cast<int>(ceil_div(size - remainder, stride));
  axis.size = static_cast<int>(outputs);
  axis.out_first = static_cast<int>(remainder), axis.out_step = static_cast<int>(stride);
  const auto meets = [&](int64_t r) { return (remainder + pad - r * dilation) % stride == 0; };
  int64_t first = 0;
  while (first < taps && !meets(first)) ++first;
  int64_t step = 1;
  while (first + step < taps && !meets(first + step)) ++step;
  axis.taps = static_cast<int>(ceil_div(taps - first, step));
  axis.filter_first = static_cast<int>(first), axis.filter_step = static_cast<int>(step);
  axis.first = static_cast<int>((remainder + pad - first * dilation) / stride);
  axis.tap_step = static_cast<int>(-step * dilation / stride);
  return axis;
}

inline GemmAxes forward_axes(const ConvParams& p) {
  GemmAxes axes;
  axes.h[0] = forward_axis(p.H, p.P, p.R, p.stride_h, p.pad_h, p.dilation_h);
  axes.w[0] = forward_axis(p.W, p.Q, p.S, p.stride_w, p.pad_w, p.dilation_w);
  return axes;
}

inline GemmAxes backward_axes(const ConvParams& p) {
  GemmAxes axes;
  axes.classes_h = static_cast<int>(p.stride_h), axes.classes_w = static_cast<int>(p.stride_w);
  for (int i = 0; i < axes.classes_h; ++i) {
    axes.h[i] = backward_axis(p.H, p.P, p.R, p.stride_h, p.pad_h, p.dilation_h, i);
  }
  for (int j = 0; j < axes.classes_w; ++j) {
    axes.w[j] = backward_axis(p.W, p.Q, p.S, p.stride_w, p.pad_w, p.dilation_w, j);
  }
  return axes;
}

/// The source position that the nearest tap of output 0 meets; the axis has taps.
inline int lowest_tap(const TapAxis& axis) {
  return axis.first + (axis.tap_step < 0 ? (axis.taps - 1) * axis.tap_step : 0);
}

/// The largest of f(axis) over the classes of an axis.
template <class F>
int largest(const TapAxis* axes, int classes, F f) {
  int result = 0;
  for (int i = 0; i < classes; ++i) {
    const int value = f(axes[i]);
    if (value > result) result = value;
  }
  return result;
}

}  // namespace cnnext::cuda
