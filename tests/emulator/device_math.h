// Device functions that CUDA's headers do not have for the host: mathematics, and arithmetic of half and bfloat16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace cnnext::cuda {

// What device code finds in the global namespace, overloaded for float and double.
using std::abs, std::exp, std::fma, std::fmax, std::fmin, std::log, std::log1p, std::sqrt, std::tanh;
using std::max, std::min;

}  // namespace cnnext::cuda

namespace cnnext::emulator {

/// a + b, rounded so that rounding the result again to a type of fewer bits gives what rounding the exact sum would: an
/// inexact sum is made odd, which is never halfway between two of them.
inline double add_round_to_odd(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  uint64_t bits;
  __builtin_memcpy(&bits, &sum, sizeof(bits));
  if (error == 0 || !std::isfinite(sum) || bits % 2 == 1) return sum;
  return std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

}  // namespace cnnext::emulator

// The product of two halfs, or two bfloat16s, is exact in double.

inline __half __hfma(__half a, __half b, __half c) {
  const double product = static_cast<double>(__half2float(a)) * static_cast<double>(__half2float(b));
  return __double2half(cnnext::emulator::add_round_to_odd(product, static_cast<double>(__half2float(c))));
}

inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  const double product = static_cast<double>(__bfloat162float(a)) * static_cast<double>(__bfloat162float(b));
  return __double2bfloat16(cnnext::emulator::add_round_to_odd(product, static_cast<double>(__bfloat162float(c))));
}

inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

// Less exact on a GPU than here.
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
