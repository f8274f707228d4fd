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
};

/// The table in use: the widest instruction set this machine has, or the one named by the environment variable
/// CNNEXT_CPU_ISA ("avx512", "avx2", "baseline") if this machine has that. Read once, at the first call.
const KernelTable& kernels();

/// The table of the instruction set called `isa`, or null if it was not built or this machine lacks it.
const KernelTable* kernels_for(const char* isa);

}  // namespace cnnext::cpu
