// Vec of simd.h for any CPU, written with the vector extensions of GCC and Clang: 16 bytes, which is SSE2 on x86-64,
// NEON on ARM, and plain scalars where there is neither. Included by simd.h only.
#pragma once

namespace cnnext::cpu::CNNEXT_ISA {

template <class To, class From>
CNNEXT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

CNNEXT_INLINE float widen(float value) { return value; }
CNNEXT_INLINE double widen(double value) { return value; }
CNNEXT_INLINE float widen(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }
CNNEXT_INLINE float widen(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // Normal numbers: move the fields, rebias the exponent by 127 - 15. Infinities and NaNs: rebias twice, to reach 255.
  const uint32_t rebias = 112u << 23;
  const uint32_t normal = (magnitude << 13) + rebias + (magnitude >= 0x7c00u ? rebias : 0u);
  const uint32_t subnormal = bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return bit_cast<float>(sign | (magnitude < 0x0400u ? subnormal : normal));
}

CNNEXT_INLINE void narrow(float value, float* to) { *to = value; }
CNNEXT_INLINE void narrow(double value, double* to) { *to = value; }
CNNEXT_INLINE void narrow(float value, BFloat16* to) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  // Just under half a unit of the last place kept, and one more if that place is odd: ties to even. A NaN is made quiet
  // instead, since the carry could turn it into an infinity.
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const uint32_t quiet = bits | 0x00400000u;
  to->bits = static_cast<uint16_t>((value != value ? quiet : rounded) >> 16);
}
CNNEXT_INLINE void narrow(float value, Half* to) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the last place is worth 2^-24, as it is in a float in [0.5, 1): that addition does the rounding.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x47800000u ? 0x7c00u : result;  // 65536 and above
  result = value != value ? nan : result;
  to->bits = static_cast<uint16_t>(sign | result);
}

template <class A>
struct VectorExtension;
template <>
struct VectorExtension<float> {
  typedef float Values __attribute__((vector_size(16)));
  typedef int32_t Integers __attribute__((vector_size(16)));
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
};
template <>
struct VectorExtension<double> {
  typedef double Values __attribute__((vector_size(16)));
  typedef int64_t Integers __attribute__((vector_size(16)));
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
};

template <class A>
struct Vec {
  using Scalar = A;
  using Values = typename VectorExtension<A>::Values;
  using Integers = typename VectorExtension<A>::Integers;
  struct Mask {
    Integers v;
  };
  static constexpr int kWidth = 16 / sizeof(A);
  static constexpr bool kMasksAreFree = false;
  static constexpr bool kHasPick = false;
  struct Lanes {
    uint32_t bits;
    CNNEXT_INLINE explicit Lanes(uint32_t set) : bits(set) {}
  };
  Values v;

  Vec() = default;
  CNNEXT_INLINE Vec(Values value) : v(value) {}
  CNNEXT_INLINE explicit Vec(A value) {
    for (int i = 0; i < kWidth; ++i) v[i] = value;
  }
  CNNEXT_INLINE static Vec zero() { return Values{}; }
  CNNEXT_INLINE A first() const { return v[0]; }

  template <class T>
  CNNEXT_INLINE static Vec load(const T* p) {
    Vec result;
    if constexpr (std::is_same_v<T, A>) {
      __builtin_memcpy(&result.v, p, sizeof(Values));
    } else {
      for (int i = 0; i < kWidth; ++i) result.v[i] = widen(p[i]);
    }
    return result;
  }
  template <class T>
  CNNEXT_INLINE static Vec load(const T* p, int n) {
    return load(p, Lanes((1u << n) - 1));
  }
  template <class T>
  [[gnu::noinline]] static Vec load(const T* p, Lanes lanes) {
    Vec result = zero();
    for (int i = 0; i < kWidth; ++i) {
      if (lanes.bits >> i & 1) result.v[i] = widen(p[i]);
    }
    return result;
  }
  template <class T>
  CNNEXT_INLINE void store(T* p) const {
    if constexpr (std::is_same_v<T, A>) {
      __builtin_memcpy(p, &v, sizeof(Values));
    } else {
      for (int i = 0; i < kWidth; ++i) narrow(v[i], p + i);
    }
  }
  template <class T>
  [[gnu::noinline]] void store(T* p, int n) const {
    for (int i = 0; i < kWidth; ++i) {
      if (i < n) narrow(v[i], p + i);
    }
  }
};

template <class A>
CNNEXT_INLINE Vec<A> operator+(Vec<A> a, Vec<A> b) {
  return a.v + b.v;
}
template <class A>
CNNEXT_INLINE Vec<A> operator-(Vec<A> a, Vec<A> b) {
  return a.v - b.v;
}
template <class A>
CNNEXT_INLINE Vec<A> operator*(Vec<A> a, Vec<A> b) {
  return a.v * b.v;
}
template <class A>
CNNEXT_INLINE Vec<A> operator/(Vec<A> a, Vec<A> b) {
  return a.v / b.v;
}
/// Fused where the compiler may contract the expression (ARM), two roundings elsewhere.
template <class A>
CNNEXT_INLINE Vec<A> fma(Vec<A> a, Vec<A> b, Vec<A> c) {
  return a.v * b.v + c.v;
}
template <class A>
CNNEXT_INLINE typename Vec<A>::Mask less(Vec<A> a, Vec<A> b) {
  return {a.v < b.v};
}
template <class A>
CNNEXT_INLINE Vec<A> select(typename Vec<A>::Mask mask, Vec<A> a, Vec<A> b) {
  using Integers = typename Vec<A>::Integers;
  const Integers bits = ((Integers)a.v & mask.v) | ((Integers)b.v & ~mask.v);
  return (typename Vec<A>::Values)bits;
}
template <class A>
CNNEXT_INLINE Vec<A> min(Vec<A> a, Vec<A> b) {
  return select(less(a, b), a, b);
}
template <class A>
CNNEXT_INLINE Vec<A> max(Vec<A> a, Vec<A> b) {
  return select(less(b, a), a, b);
}
template <class A>
CNNEXT_INLINE Vec<A> abs(Vec<A> a) {
  using Integers = typename Vec<A>::Integers;
  return (typename Vec<A>::Values)((Integers)a.v & ~(Integers)Vec<A>(A(-0.0)).v);
}
template <class A>
CNNEXT_INLINE Vec<A> round(Vec<A> a) {
  Vec<A> result;
  for (int i = 0; i < Vec<A>::kWidth; ++i) result.v[i] = std::nearbyint(a.v[i]);
  return result;
}
template <class A>
CNNEXT_INLINE Vec<A> exp2_of_integer(Vec<A> n) {
  using Extension = VectorExtension<A>;
  typename Vec<A>::Integers exponent;
  for (int i = 0; i < Vec<A>::kWidth; ++i) {
    exponent[i] = static_cast<int64_t>(n.v[i]) + Extension::kExponentBias;
  }
  return (typename Vec<A>::Values)(exponent << Extension::kMantissaBits);
}
template <class A>
CNNEXT_INLINE A sum(Vec<A> a) {
  if constexpr (Vec<A>::kWidth == 4) {
    return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  } else {
    return a.v[0] + a.v[1];
  }
}
CNNEXT_INLINE Vec<float> even_lanes(Vec<float> a, Vec<float> b) {
  return Vec<float>::Values{a.v[0], a.v[2], b.v[0], b.v[2]};
}
CNNEXT_INLINE void interleave(Vec<float>& a, Vec<float>& b) {
  const Vec<float>::Values low{a.v[0], b.v[0], a.v[1], b.v[1]}, high{a.v[2], b.v[2], a.v[3], b.v[3]};
  a.v = low;
  b.v = high;
}
CNNEXT_INLINE Vec<double> even_lanes(Vec<double> a, Vec<double> b) { return Vec<double>::Values{a.v[0], b.v[0]}; }
CNNEXT_INLINE void interleave(Vec<double>& a, Vec<double>& b) {
  const Vec<double>::Values low{a.v[0], b.v[0]}, high{a.v[1], b.v[1]};
  a.v = low;
  b.v = high;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
