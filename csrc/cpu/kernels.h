// Entry points of the CPU kernels: plain C++, no torch.
//
// Every kernel exists once per instruction set. The sources in isa/ compile the same text for each; `kernels()` picks
// the best that this machine runs, once.
#pragma once

#include "../conv_params.h"
#include "parallel.h"

namespace cnnext::cpu {

/// y = activation(conv(x, w) + bias). `bias` (K) may be null. All pointers have the dtype of the params.
using ForwardFn = void (*)(const ConvParams&, const Parallel&, const void* x, const void* w, const void* bias, void* y);

/// dx = gradient of conv with respect to x. Every element of dx is written. The params' activation is ignored.
using BackwardInputFn = void (*)(const ConvParams&, const Parallel&, const void* dy, const void* w, void* dx);

/// dw = gradient with respect to w, contiguous; dbias (K) = sum of dy over n, p, q. Either may be null, not both.
using BackwardWeightFn = void (*)(const ConvParams&, const Parallel&, const void* dy, const void* x, void* dw,
                                  void* dbias);

/// Output channels of a panel of a packed filter (packed_filter.h), on every machine.
constexpr int64_t kPackedColumns = 64;

/// What inference puts behind a convolution, and what it has made of the filter beforehand.
struct FusedOperands {
  const void* x;
  Layout x_layout;  // of `conv`, may be kNCHW where the params' is kNHWC
  const void* w;
  const void* packed_w;  // the filter in the order of packed_filter.h, as accumulators, or null
  const void* bias;      // (K) or null
  const void* residual;  // added before the activation, with the layout of y, or null
  Strides4 residual_strides;
  void* y;
};

/// y = activation(conv(x, w) + bias + residual), one group or several.
using FusedFn = void (*)(const ConvParams&, const Parallel&, const FusedOperands&);

/// The depthwise-separable block: a depthwise convolution, its bias and activation, then a 1x1 convolution.
/// Channels-last, without a multiplier; the operands are those of the 1x1 convolution, x that of the depthwise one.
struct SeparableParams {
  ConvParams depthwise;  // its y_strides are not looked at
  ConvParams pointwise;  // its x_strides are not looked at
  const void* depthwise_w;
  const void* depthwise_bias;  // (C) or null
};
using SeparableFn = void (*)(const SeparableParams&, const Parallel&, const FusedOperands&);

struct FusedKernels {
  FusedFn conv;
  FusedFn add_residual;  // y = activation(y + residual), behind a kernel without either
  SeparableFn separable;
};

struct OpKernels {
  ForwardFn forward;
  BackwardInputFn backward_input;
  BackwardWeightFn backward_weight;
};

/// All kernels of one instruction set.
struct KernelTable {
  const char* isa;
  OpKernels depthwise;
  OpKernels grouped;
  OpKernels pointwise;
  FusedKernels fused;
};

/// The table in use: the widest instruction set this machine has, or the one named by the environment variable
/// CNNEXT_CPU_ISA ("avx512", "avx2", "baseline") if this machine has that. Read once, at the first call.
const KernelTable& kernels();

/// The table of the instruction set called `isa`, or null if it was not built or this machine lacks it.
const KernelTable* kernels_for(const char* isa);

}  // namespace cnnext::cpu
