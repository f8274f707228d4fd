// Element types: conversion to and from the accumulator's type, one at a time and 16 bytes at a time, and the
// epilogue's activations.
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
__device__ inline void round_to(float& element, float x) { element = x; }
__device__ inline void round_to(double& element, double x) { element = x; }
__device__ inline void round_to(__half& element, float x) { element = __float2half(x); }
__device__ inline void round_to(__nv_bfloat16& element, float x) { element = __float2bfloat16(x); }

/// Elements in 16 bytes, the widest access.
template <class T>
constexpr int kVector = 16 / sizeof(T);

/// The same bits as another type.
template <class To, class From>
__device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(to));
  return to;
}

__device__ __forceinline__ float2 unpack_pair(unsigned bits, __half) { return __half22float2(bit_cast<__half2>(bits)); }
__device__ __forceinline__ float2 unpack_pair(unsigned bits, __nv_bfloat16) {
  // One instruction each; __bfloat1622float2 takes two for the upper one.
  return make_float2(bit_cast<float>(bits << 16), bit_cast<float>(bits & 0xffff0000u));
}
__device__ __forceinline__ unsigned pack_pair(float a, float b, __half) {
  return bit_cast<unsigned>(__floats2half2_rn(a, b));
}
__device__ __forceinline__ unsigned pack_pair(float a, float b, __nv_bfloat16) {
  return bit_cast<unsigned>(__floats2bfloat162_rn(a, b));
}

/// 16 bytes of T as accumulators.
template <class T>
__device__ __forceinline__ void unpack(const uint4& bits, float (&values)[kVector<T>]) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      values[i] = bit_cast<float>(words[i]);
    } else {
      const float2 pair = unpack_pair(words[i], T());
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

/// The inverse; rounds to nearest even.
template <class T>
__device__ __forceinline__ uint4 pack(const float (&values)[kVector<T>]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words[i] = bit_cast<unsigned>(values[i]);
    } else {
      words[i] = pack_pair(values[2 * i], values[2 * i + 1], T());
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// x where x is NaN, else the value clamped: comparisons with NaN are false, so NaN falls through.
template <class A>
__device__ __forceinline__ A clamp(A x, A low, A high) {
  return x < low ? low : (x > high ? high : x);
}

/// tanh(log(1 + exp(x))) = (e^2 + 2e) / (e^2 + 2e + 2) with e = exp(x), which is 1 to the last bit from x = 20 on
/// (float) or 40 (double), long before e^2 overflows.
template <class A>
__device__ __forceinline__ A tanh_softplus(A x) {
  const A e = exp(x > A(40) ? A(40) : x);
  const A n = e * (e + A(2));
  return n / (n + A(2));
}

/// The activations of torch.nn.functional with their default arguments.
template <class A>
__device__ __forceinline__ A activate(A x, Activation activation) {
  switch (activation) {
    case Activation::kNone: return x;
    case Activation::kRelu: return x < A(0) ? A(0) : x;
    case Activation::kRelu6: return clamp(x, A(0), A(6));
    case Activation::kLeakyRelu: return x < A(0) ? x * A(0.01) : x;
    case Activation::kSigmoid: return A(1) / (A(1) + exp(-x));
    case Activation::kTanh: return tanh(x);
    case Activation::kMish: return x * tanh_softplus(x);
    case Activation::kSilu: return x / (A(1) + exp(-x));
    case Activation::kHardswish: return x * clamp(x + A(3), A(0), A(6)) / A(6);
  }
  return x;
}

/// All of `values`. The cheap activations branch once for all; in the others the branch is lost among the arithmetic.
template <class A, int kCount>
__device__ __forceinline__ void activate_all(A (&values)[kCount], Activation activation) {
  const auto apply = [&](auto function) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = function(values[i]);
  };
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kRelu: return apply([](A x) { return activate(x, Activation::kRelu); });
    case Activation::kRelu6: return apply([](A x) { return activate(x, Activation::kRelu6); });
    case Activation::kLeakyRelu: return apply([](A x) { return activate(x, Activation::kLeakyRelu); });
    case Activation::kHardswish: return apply([](A x) { return activate(x, Activation::kHardswish); });
    default: return apply([=](A x) { return activate(x, activation); });
  }
}

}  // namespace cnnext::cuda
