// A small SIMD layer: one vector of accumulators, with the loads and stores of every element type.
//
// `Vec<A>` holds `kWidth` accumulators of type A, float or double. Kernels written over it are compiled once per
// instruction set, each copy in a namespace of its own (see isa/). A Vec loads and stores four element types:
//
//   element T            accumulator A
//   float                float
//   Half, BFloat16       float           converted in the load, rounded to nearest even in the store
//   double               double
//
// What every Vec offers (free functions unless a member is shown):
//
//   Vec<A>(a), Vec<A>::zero()              broadcast
//   Vec<A>::load(p), v.store(p)            kWidth elements, no alignment needed
//   Vec<A>::load(p, n), v.store(p, n)      the first n lanes, 0 <= n <= kWidth; the other lanes load as zero, and no
//                                          byte outside the n elements is touched
//   Vec<A>::load(p, lanes)                 the lanes of a set, Vec<A>::Lanes(bits): bit i for lane i; the others as
//   above Vec<A>::kMasksAreFree                  whether loading a set of lanes is as fast as loading all of them a +
//   b, a - b, a * b, a / b, a += b, fma(a, b, c) = a * b + c min(a, b), max(a, b)                   b if either is NaN,
//   so max(limit, x) keeps a NaN of x less(a, b), select(mask, a, b)         lanewise a < b ? ... abs(a), round(a) to
//   the nearest integer, ties to even exp2_of_integer(n)                     2^n for integral n in the normal range of
//   A sum(v)                                 over the lanes, always in the same order even_lanes(a, b) lanes 0, 2, 4,
//   ... of a followed by b interleave(a, b)                       in place: a|b becomes a0 b0 a1 b1 ...
#pragma once

#include "isa_prelude.h"

/// Vector code must be inlined: a call would spill every register.
#define CNNEXT_INLINE [[gnu::always_inline]] inline

namespace cnnext::cpu::CNNEXT_ISA {

/// Storage of an IEEE binary16 number.
struct Half {
  uint16_t bits;
};

/// Storage of a bfloat16 number: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

template <class A>
struct Vec;

// NOTE: std::min and std::max are avoided: they are templates shared with the rest of the program, and a copy that was
// not inlined would be compiled for this instruction set.
CNNEXT_INLINE int64_t min(int64_t a, int64_t b) { return b < a ? b : a; }
CNNEXT_INLINE int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }

/// Bits 0 .. n, for any n; at most 32 of them.
CNNEXT_INLINE uint32_t low_bits(int64_t n) { return static_cast<uint32_t>((uint64_t{1} << max(0, min(n, 32))) - 1); }

/// a / b rounded up, for b > 0 and a >= 0.
CNNEXT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace cnnext::cpu::CNNEXT_ISA

#if defined(CNNEXT_AVX512)
#include "simd_avx512.h"
#elif defined(CNNEXT_AVX2)
#include "simd_avx2.h"
#else
#include "simd_baseline.h"
#endif

namespace cnnext::cpu::CNNEXT_ISA {

template <class A>
CNNEXT_INLINE Vec<A>& operator+=(Vec<A>& a, Vec<A> b) {
  return a = a + b;
}

/// The element type T of a tensor and the type A that its sums are kept in.
template <class Element, class Accumulator>
struct Types {
  using T = Element;
  using A = Accumulator;
};

/// Calls f(Types<T, A>{}) with the types of `dtype`.
template <class F>
CNNEXT_INLINE void visit_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32: return f(Types<float, float>{});
    case DType::kFloat64: return f(Types<double, double>{});
    case DType::kFloat16: return f(Types<Half, float>{});
    case DType::kBFloat16: return f(Types<BFloat16, float>{});
  }
}

/// One element as an accumulator.
template <class A, class T>
CNNEXT_INLINE A load_scalar(const T* p) {
  if constexpr (std::is_same_v<A, T>) {
    return *p;
  } else {
    return Vec<A>::load(p, 1).first();
  }
}

/// One accumulator rounded to an element.
template <class A, class T>
CNNEXT_INLINE void store_scalar(T* p, A value) {
  if constexpr (std::is_same_v<A, T>) {
    *p = value;
  } else {
    Vec<A>(value).store(p, 1);
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
