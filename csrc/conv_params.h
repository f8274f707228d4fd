// The geometry of one 2-d convolution call, shared by bindings, CPU kernels and CUDA kernels.
//
// Naming follows the convolution literature: input x is N x C x H x W, filter w is K x C/groups x R x S,
// output y is N x K x P x Q.
#pragma once

#include <cstdint>

namespace cnnext {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

/// Which dimension of x and y has stride 1. The other strides are free, so a slice of a wider tensor needs no copy.
enum class Layout : int32_t {
  kNCHW = 0,  // stride of W is 1
  kNHWC = 1,  // stride of C is 1 ("channels_last")
};

/// Epilogue applied to the float32 (float64) accumulator before it is rounded to the output's dtype.
/// The numbers are part of the operator schema; append, never renumber.
enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kLeakyRelu = 3,  // slope 0.01, as nn.LeakyReLU's default
  kSigmoid = 4,
  kTanh = 5,
  kMish = 6,
  kSilu = 7,
  kHardswish = 8,
};

/// Strides in elements of a tensor indexed (n, c, h, w).
struct Strides4 {
  int64_t n, c, h, w;
};

/// One convolution problem.
///
/// Assumes (the bindings check it, the kernels do not):
///  - C % groups == 0, K % groups == 0, and C == groups for the depthwise kernels;
///  - P and Q follow from H, W, the filter, stride, padding and dilation;
///  - the dimension named by `layout` has stride 1 in both x_strides and y_strides;
///  - the filter is contiguous, K x C/groups x R x S;
///  - every size is at least 1 (empty tensors never reach a kernel).
/// The same struct describes the gradients: there dx has x_strides and dy has y_strides.
struct ConvParams {
  int64_t N, C, H, W;
  int64_t K, R, S;
  int64_t P, Q;
  int64_t groups;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  Strides4 x_strides;
  Strides4 y_strides;
  Layout layout;
  DType dtype;
  Activation activation;

  int64_t channels_per_group() const { return C / groups; }
  int64_t outputs_per_group() const { return K / groups; }
};

}  // namespace cnnext
