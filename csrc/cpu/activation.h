// The activation functions of the epilogue, on SIMD vectors: activate(v, a) = a(v), lane by lane.
//
// Semantics are those of torch.nn.functional, NaN and infinities included: NaN stays NaN, and silu, mish and hardswish
// of -inf are NaN (-inf * 0). Float32 results are within a few ulp over the whole range, tails included:
//  - exp is range reduction x = n ln 2 + r and a polynomial of degree 6 in r (minimax fit, 0.05 ulp before rounding);
//  - sigmoid and silu use z = exp(-|x|) <= 1, so that neither tail overflows;
//  - tanh is an odd polynomial below 0.625 (relative accuracy near 0) and 1 - 2 / (exp(2|x|) + 1) above;
//  - mish needs no log: tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2) with e = exp(x).
// Float64 calls the C library for each lane.
//
// `a` is a run-time value, equal for a whole call: the branch is predicted and costs nothing next to a store.
#pragma once

#include "simd.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// The compiler's vectors with the size of Vec<float>: arithmetic, comparison and selection in one text for all ISAs.
typedef float RawFloats __attribute__((vector_size(sizeof(Vec<float>))));
typedef int32_t RawInts __attribute__((vector_size(sizeof(Vec<float>))));

/// exp(x) for every float: 0 and inf where they are the rounded result, denormals included, NaN for NaN.
CNNEXT_INLINE RawFloats exp_float(RawFloats x) {
  // Beyond these the result is 0 or inf anyway; NaN fails both comparisons and passes through.
  x = x < -104.0f ? RawFloats{} - 104.0f : x;
  x = x > 89.0f ? RawFloats{} + 89.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits: no conversion instruction, any ISA.
  const RawFloats shifted = x * 1.44269504f + 12582912.0f;
  const RawFloats n = shifted - 12582912.0f;
  const RawInts exponent = (RawInts)shifted - 0x4B400000;
  // ln 2 in two parts; the first has 14 trailing zero bits, so n times it is exact.
  const RawFloats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  RawFloats p = 1.38141715e-3f + RawFloats{};
  p = p * r + 8.36892240e-3f;
  p = p * r + 4.16684076e-2f;
  p = p * r + 1.66665196e-1f;
  p = p * r + 4.99999940e-1f;
  p = (p * r) * r + r + 1.0f;
  // 2^exponent in two factors, because exponent runs from -150 to 128.
  const RawInts half = exponent >> 1;
  return p * (RawFloats)((half + 127) << 23) * (RawFloats)((exponent - half + 127) << 23);
}

CNNEXT_INLINE RawFloats abs_float(RawFloats x) { return (RawFloats)((RawInts)x & 0x7FFFFFFF); }

/// 1 / (1 + exp(-x)), with relative accuracy down to the denormals.
CNNEXT_INLINE RawFloats sigmoid_float(RawFloats x) {
  const RawFloats z = exp_float(-abs_float(x));
  return (x < 0.0f ? z : RawFloats{} + 1.0f) / (1.0f + z);
}

CNNEXT_INLINE RawFloats tanh_float(RawFloats x) {
  const RawFloats magnitude = abs_float(x);
  const RawFloats large = 1.0f - 2.0f / (exp_float(2.0f * magnitude) + 1.0f);
  const RawFloats square = x * x;
  RawFloats p = -5.69737516e-3f + RawFloats{};
  p = p * square + 2.06325371e-2f;
  p = p * square - 5.37377931e-2f;
  p = p * square + 1.33314207e-1f;
  p = p * square - 3.33332807e-1f;
  const RawFloats small = x + x * (square * p);
  const RawFloats large_signed = (RawFloats)((RawInts)large | ((RawInts)x & INT32_MIN));
  return magnitude < 0.625f ? small : large_signed;
}

CNNEXT_INLINE RawFloats mish_float(RawFloats x) {
  // Above 20 the factor of x rounds to 1; the cap keeps exp(x)^2 finite.
  const RawFloats e = exp_float(x > 20.0f ? RawFloats{} + 20.0f : x);
  const RawFloats q = e * (e + 2.0f);
  return x * (q / (q + 2.0f));
}

CNNEXT_INLINE RawFloats activate_smooth_lanes(RawFloats x, Activation a) {
  switch (a) {
    case Activation::kSigmoid: return sigmoid_float(x);
    case Activation::kTanh: return tanh_float(x);
    case Activation::kMish: return mish_float(x);
    default: return x * sigmoid_float(x);
  }
}

inline double activate_smooth_lane(double x, Activation a) {
  switch (a) {
    case Activation::kTanh: return ::tanh(x);
    case Activation::kMish: {
      const double e = ::exp(x > 40.0 ? 40.0 : x);
      const double q = e * (e + 2.0);
      return x * (q / (q + 2.0));
    }
    default: {
      const double z = ::exp(-::fabs(x));
      const double sigmoid = (x < 0.0 ? z : 1.0) / (1.0 + z);
      return a == Activation::kSigmoid ? sigmoid : x * sigmoid;
    }
  }
}

/// sigmoid, tanh, mish and silu: out of line, so that the many kernels which end in an activation stay small.
template <class A>
[[gnu::noinline]] void activate_smooth(Vec<A>* v, Activation a) {
  if constexpr (std::is_same_v<A, float>) {
    RawFloats raw;
    __builtin_memcpy(&raw, v, sizeof(raw));
    raw = activate_smooth_lanes(raw, a);
    __builtin_memcpy(v, &raw, sizeof(raw));
  } else {
    A lanes[Vec<A>::kWidth];
    v->store(lanes);
    for (int i = 0; i < Vec<A>::kWidth; ++i) lanes[i] = activate_smooth_lane(lanes[i], a);
    *v = Vec<A>::load(lanes);
  }
}

/// a(v). NOTE: min and max return their second argument when either is NaN, hence the order.
template <class V>
CNNEXT_INLINE V activate(V v, Activation a) {
  using A = typename V::Scalar;
  switch (a) {
    case Activation::kNone: return v;
    case Activation::kRelu: return max(V::zero(), v);
    case Activation::kRelu6: return min(V(A(6)), max(V::zero(), v));
    case Activation::kLeakyRelu: return select(less(V::zero(), v), v, v * V(A(0.01)));
    case Activation::kHardswish: return v * min(V(A(6)), max(V::zero(), v + V(A(3)))) / V(A(6));
    default: break;
  }
  V result = v;
  activate_smooth(&result, a);
  return result;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
