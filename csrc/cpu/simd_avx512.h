// Vec of simd.h for AVX-512 (F, BW, VL, DQ): 16 floats or 8 doubles. Included by simd.h only.
#pragma once

namespace cnnext::cpu::CNNEXT_ISA {

CNNEXT_INLINE __mmask16 first_lanes16(int n) {
  return static_cast<__mmask16>(_bzhi_u32(0xffffu, static_cast<unsigned>(n)));
}
CNNEXT_INLINE __mmask8 first_lanes8(int n) { return static_cast<__mmask8>(_bzhi_u32(0xffu, static_cast<unsigned>(n))); }

CNNEXT_INLINE __m512 widen_bfloat16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/// Rounds to nearest even by adding just under half a unit of the last place kept, and one more if that place is odd.
CNNEXT_INLINE __m256i narrow_bfloat16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  // The carry could turn a NaN into an infinity: keep its upper half, made quiet, instead.
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

CNNEXT_INLINE __m256i narrow_half(__m512 v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <>
struct Vec<float> {
  using Scalar = float;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  static constexpr bool kMasksAreFree = true;
  struct Lanes {
    __mmask16 mask;
    CNNEXT_INLINE explicit Lanes(uint32_t bits) : mask(static_cast<__mmask16>(bits)) {}
  };
  static constexpr bool kHasPick = true;
  struct Pick {
    __m512i index;
    __mmask16 mask;
    CNNEXT_INLINE Pick() : index(_mm512_setzero_si512()), mask(0) {}
    CNNEXT_INLINE void set(int lane, int from) {
      const __mmask16 bit = static_cast<__mmask16>(1u << lane);
      mask = from < 0 ? mask & ~bit : mask | bit;
      index = _mm512_mask_set1_epi32(index, bit, from);
    }
  };
  __m512 v;

  Vec() = default;
  CNNEXT_INLINE Vec(__m512 value) : v(value) {}
  CNNEXT_INLINE explicit Vec(float value) : v(_mm512_set1_ps(value)) {}
  CNNEXT_INLINE static Vec zero() { return _mm512_setzero_ps(); }
  CNNEXT_INLINE float first() const { return _mm512_cvtss_f32(v); }

  CNNEXT_INLINE static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  CNNEXT_INLINE static Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes16(n), p); }
  CNNEXT_INLINE static Vec load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  CNNEXT_INLINE static Vec load(const Half* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes16(n), p));
  }
  CNNEXT_INLINE static Vec load(const BFloat16* p) {
    return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  CNNEXT_INLINE static Vec load(const BFloat16* p, int n) {
    return widen_bfloat16(_mm256_maskz_loadu_epi16(first_lanes16(n), p));
  }

  CNNEXT_INLINE static Vec load(const float* p, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes.mask, p); }
  CNNEXT_INLINE static Vec load(const Half* p, Lanes lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes.mask, p));
  }
  CNNEXT_INLINE static Vec load(const BFloat16* p, Lanes lanes) {
    return widen_bfloat16(_mm256_maskz_loadu_epi16(lanes.mask, p));
  }

  CNNEXT_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  CNNEXT_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first_lanes16(n), v); }
  CNNEXT_INLINE void store(Half* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_half(v)); }
  CNNEXT_INLINE void store(Half* p, int n) const { _mm256_mask_storeu_epi16(p, first_lanes16(n), narrow_half(v)); }
  CNNEXT_INLINE void store(BFloat16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(v));
  }
  CNNEXT_INLINE void store(BFloat16* p, int n) const {
    _mm256_mask_storeu_epi16(p, first_lanes16(n), narrow_bfloat16(v));
  }
};

CNNEXT_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return _mm512_add_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return _mm512_sub_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return _mm512_mul_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return _mm512_div_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
CNNEXT_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a.v, b.v); }
CNNEXT_INLINE __mmask16 less(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
CNNEXT_INLINE Vec<float> select(__mmask16 mask, Vec<float> a, Vec<float> b) {
  return _mm512_mask_blend_ps(mask, b.v, a.v);
}
CNNEXT_INLINE Vec<float> abs(Vec<float> a) { return _mm512_abs_ps(a.v); }
CNNEXT_INLINE Vec<float> round(Vec<float> a) {
  return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
CNNEXT_INLINE Vec<float> exp2_of_integer(Vec<float> n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}
CNNEXT_INLINE float sum(Vec<float> a) { return _mm512_reduce_add_ps(a.v); }
CNNEXT_INLINE Vec<float> even_lanes(Vec<float> a, Vec<float> b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a.v, even, b.v);
}
CNNEXT_INLINE Vec<float> pick(Vec<float> a, const Vec<float>::Pick& from) {
  return _mm512_maskz_permutexvar_ps(from.mask, from.index, a.v);
}
CNNEXT_INLINE Vec<float> pick(Vec<float> a, Vec<float> b, const Vec<float>::Pick& from) {
  return _mm512_maskz_permutex2var_ps(from.mask, a.v, from.index, b.v);
}
CNNEXT_INLINE void interleave(Vec<float>& a, Vec<float>& b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512 first = _mm512_permutex2var_ps(a.v, low, b.v);
  b.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b.v);
  a.v = first;
}

template <>
struct Vec<double> {
  using Scalar = double;
  using Mask = __mmask8;
  static constexpr int kWidth = 8;
  static constexpr bool kMasksAreFree = true;
  static constexpr bool kHasPick = false;
  struct Lanes {
    __mmask8 mask;
    CNNEXT_INLINE explicit Lanes(uint32_t bits) : mask(static_cast<__mmask8>(bits)) {}
  };
  __m512d v;

  Vec() = default;
  CNNEXT_INLINE Vec(__m512d value) : v(value) {}
  CNNEXT_INLINE explicit Vec(double value) : v(_mm512_set1_pd(value)) {}
  CNNEXT_INLINE static Vec zero() { return _mm512_setzero_pd(); }
  CNNEXT_INLINE double first() const { return _mm512_cvtsd_f64(v); }

  CNNEXT_INLINE static Vec load(const double* p) { return _mm512_loadu_pd(p); }
  CNNEXT_INLINE static Vec load(const double* p, int n) { return _mm512_maskz_loadu_pd(first_lanes8(n), p); }
  CNNEXT_INLINE static Vec load(const double* p, Lanes lanes) { return _mm512_maskz_loadu_pd(lanes.mask, p); }
  CNNEXT_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  CNNEXT_INLINE void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first_lanes8(n), v); }
};

CNNEXT_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return _mm512_add_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return _mm512_sub_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return _mm512_mul_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return _mm512_div_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm512_fmadd_pd(a.v, b.v, c.v); }
CNNEXT_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a.v, b.v); }
CNNEXT_INLINE __mmask8 less(Vec<double> a, Vec<double> b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
CNNEXT_INLINE Vec<double> select(__mmask8 mask, Vec<double> a, Vec<double> b) {
  return _mm512_mask_blend_pd(mask, b.v, a.v);
}
CNNEXT_INLINE Vec<double> abs(Vec<double> a) { return _mm512_abs_pd(a.v); }
CNNEXT_INLINE Vec<double> round(Vec<double> a) {
  return _mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
CNNEXT_INLINE Vec<double> exp2_of_integer(Vec<double> n) {
  const __m512i exponent = _mm512_add_epi64(_mm512_cvtpd_epi64(n.v), _mm512_set1_epi64(1023));
  return _mm512_castsi512_pd(_mm512_slli_epi64(exponent, 52));
}
CNNEXT_INLINE double sum(Vec<double> a) { return _mm512_reduce_add_pd(a.v); }
CNNEXT_INLINE Vec<double> even_lanes(Vec<double> a, Vec<double> b) {
  return _mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), b.v);
}
CNNEXT_INLINE void interleave(Vec<double>& a, Vec<double>& b) {
  const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512d first = _mm512_permutex2var_pd(a.v, low, b.v);
  b.v = _mm512_permutex2var_pd(a.v, _mm512_add_epi64(low, _mm512_set1_epi64(4)), b.v);
  a.v = first;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
