// Element types: conversion to and from the accumulator's type, and the epilogue's activations.
#pragma once

#include "../conv_params.h"
#include "portability.h"

namespace cnnext::cuda {

/// Accumulator of a dtype: float, but double for double.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};

__device__ inline float to_accumulator(float x) { return x; }
__device__ inline double to_accumulator(double x) { return x; }
__device__ inline float to_accumulator(__half x) { return __half2float(x); }
__device__ inline float to_accumulator(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Rounds to nearest even.
__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(double* p, double x) { *p = x; }
__device__ inline void store(__half* p, float x) { *p = __float2half(x); }
__device__ inline void store(__nv_bfloat16* p, float x) { *p = __float2bfloat16(x); }

/// x where x is NaN, else the value clamped: comparisons with NaN are false, so NaN falls through.
template <class A>
__device__ inline A clamp(A x, A low, A high) {
  return x < low ? low : (x > high ? high : x);
}

/// log(1 + exp(x)) without overflow.
template <class A>
__device__ inline A softplus(A x) {
  return x > A(0) ? x + log1p(exp(-x)) : log1p(exp(x));
}

/// The activations of torch.nn.functional with their default arguments.
template <class A>
__device__ inline A activate(A x, Activation activation) {
  switch (activation) {
    case Activation::kNone: return x;
    case Activation::kRelu: return x < A(0) ? A(0) : x;
    case Activation::kRelu6: return clamp(x, A(0), A(6));
    case Activation::kLeakyRelu: return x < A(0) ? x * A(0.01) : x;
    case Activation::kSigmoid: return A(1) / (A(1) + exp(-x));
    case Activation::kTanh: return tanh(x);
    case Activation::kMish: return x * tanh(softplus(x));
    case Activation::kSilu: return x / (A(1) + exp(-x));
    case Activation::kHardswish: return x * clamp(x + A(3), A(0), A(6)) / A(6);
  }
  return x;
}

}  // namespace cnnext::cuda
