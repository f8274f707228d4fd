// Entry points of the CUDA kernels: plain C++, no torch. Each launches on `stream` and returns without waiting; the
// caller checks cudaGetLastError.
#pragma once

#include "../conv_params.h"

struct CUstream_st;

namespace cnnext::cuda {

using Stream = CUstream_st*;

/// y = activation(conv(x, w) + bias) for any depthwise problem. `bias` (K) may be null.
void depthwise_forward_general(const ConvParams& params, const void* x, const void* w, const void* bias, void* y,
                               Stream stream);

}  // namespace cnnext::cuda
