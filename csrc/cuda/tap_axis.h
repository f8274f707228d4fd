// The geometry of an implicit GEMM along the axes of an image, shared by kernels and planners.
#pragma once

namespace cnnext::cuda {

/// One axis of the output and the source positions that its taps meet. Output i (of `outputs`) and tap j (of `taps`)
/// meet source position i * step + first + j * tap_step, zero outside [0, size), and the filter's position
/// filter_first + j * filter_step; the output lies at out_first + i * out_step.
///
/// A convolution is step = stride, first = -padding, tap_step = dilation. Its input gradient has one such axis for each
/// class of positions modulo the stride, each with the taps that reach it, so that no lane tests divisibility.
struct TapAxis {
  int outputs = 0, taps = 0, size = 0;
  int step = 1, first = 0, tap_step = 1;
  int filter_first = 0, filter_step = 1;
  int out_first = 0, out_step = 1;
};

constexpr int kMaxAxes = 2;

/// The classes of output positions: blockIdx.z = class_h * classes_w + class_w.
struct GemmAxes {
  TapAxis h[kMaxAxes], w[kMaxAxes];
  int classes_h = 1, classes_w = 1;
};

}  // namespace cnnext::cuda
