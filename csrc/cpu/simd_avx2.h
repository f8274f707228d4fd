// Vec of simd.h for AVX2 with FMA and F16C: 8 floats or 4 doubles. Included by simd.h only.
#pragma once

namespace cnnext::cpu::CNNEXT_ISA {

// A window of 8 (4) words that starts n words before the middle has its first n words set.
alignas(64) inline constexpr int32_t kFirstLanes32[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
alignas(64) inline constexpr int64_t kFirstLanes64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};

CNNEXT_INLINE __m256i first_lanes8(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes32 + 8 - n));
}
CNNEXT_INLINE __m256i first_lanes4(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kFirstLanes64 + 4 - n));
}

/// The 8 16-bit words whose bit is set.
CNNEXT_INLINE __m128i load_words_set(const void* p, uint32_t bits) {
  alignas(16) uint16_t words[8] = {};
  for (int i = 0; i < 8; ++i) {
    if (bits >> i & 1) words[i] = static_cast<const uint16_t*>(p)[i];
  }
  return _mm_load_si128(reinterpret_cast<const __m128i*>(words));
}

/// The first n of 8 16-bit words; AVX2 has no masked load this narrow.
CNNEXT_INLINE __m128i load_words(const void* p, int n) {
  alignas(16) uint16_t words[8] = {};
  for (int i = 0; i < n; ++i) words[i] = static_cast<const uint16_t*>(p)[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(words));
}

CNNEXT_INLINE void store_words(void* p, int n, __m128i value) {
  alignas(16) uint16_t words[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(words), value);
  for (int i = 0; i < n; ++i) static_cast<uint16_t*>(p)[i] = words[i];
}

CNNEXT_INLINE __m256 widen_bfloat16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/// Rounds to nearest even by adding just under half a unit of the last place kept, and one more if that place is odd.
CNNEXT_INLINE __m128i narrow_bfloat16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  // The carry could turn a NaN into an infinity: keep its upper half, made quiet, instead.
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

CNNEXT_INLINE __m128i narrow_half(__m256 v) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

template <>
struct Vec<float> {
  using Scalar = float;
  struct Mask {
    __m256 v;
  };
  static constexpr int kWidth = 8;
  static constexpr bool kMasksAreFree = false;
  static constexpr bool kHasPick = false;
  struct Lanes {
    uint32_t bits;
    __m256i mask;
    CNNEXT_INLINE explicit Lanes(uint32_t set) : bits(set) {
      const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(set)), bit), bit);
    }
  };
  __m256 v;

  Vec() = default;
  CNNEXT_INLINE Vec(__m256 value) : v(value) {}
  CNNEXT_INLINE explicit Vec(float value) : v(_mm256_set1_ps(value)) {}
  CNNEXT_INLINE static Vec zero() { return _mm256_setzero_ps(); }
  CNNEXT_INLINE float first() const { return _mm256_cvtss_f32(v); }

  CNNEXT_INLINE static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  CNNEXT_INLINE static Vec load(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes8(n)); }
  CNNEXT_INLINE static Vec load(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  CNNEXT_INLINE static Vec load(const Half* p, int n) { return _mm256_cvtph_ps(load_words(p, n)); }
  CNNEXT_INLINE static Vec load(const BFloat16* p) {
    return widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  CNNEXT_INLINE static Vec load(const BFloat16* p, int n) { return widen_bfloat16(load_words(p, n)); }

  CNNEXT_INLINE static Vec load(const float* p, Lanes lanes) { return _mm256_maskload_ps(p, lanes.mask); }
  CNNEXT_INLINE static Vec load(const Half* p, Lanes lanes) { return _mm256_cvtph_ps(load_words_set(p, lanes.bits)); }
  CNNEXT_INLINE static Vec load(const BFloat16* p, Lanes lanes) {
    return widen_bfloat16(load_words_set(p, lanes.bits));
  }

  CNNEXT_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  CNNEXT_INLINE void store(float* p, int n) const { _mm256_maskstore_ps(p, first_lanes8(n), v); }
  CNNEXT_INLINE void store(Half* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_half(v)); }
  CNNEXT_INLINE void store(Half* p, int n) const { store_words(p, n, narrow_half(v)); }
  CNNEXT_INLINE void store(BFloat16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bfloat16(v)); }
  CNNEXT_INLINE void store(BFloat16* p, int n) const { store_words(p, n, narrow_bfloat16(v)); }
};

CNNEXT_INLINE Vec<float> operator+(Vec<float> a, Vec<float> b) { return _mm256_add_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> operator-(Vec<float> a, Vec<float> b) { return _mm256_sub_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> operator*(Vec<float> a, Vec<float> b) { return _mm256_mul_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> operator/(Vec<float> a, Vec<float> b) { return _mm256_div_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
CNNEXT_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a.v, b.v); }
CNNEXT_INLINE Vec<float>::Mask less(Vec<float> a, Vec<float> b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
CNNEXT_INLINE Vec<float> select(Vec<float>::Mask mask, Vec<float> a, Vec<float> b) {
  return _mm256_blendv_ps(b.v, a.v, mask.v);
}
CNNEXT_INLINE Vec<float> abs(Vec<float> a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
CNNEXT_INLINE Vec<float> round(Vec<float> a) {
  return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
CNNEXT_INLINE Vec<float> exp2_of_integer(Vec<float> n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
CNNEXT_INLINE float sum(Vec<float> a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
CNNEXT_INLINE Vec<float> even_lanes(Vec<float> a, Vec<float> b) {
  // Each half first; that leaves the pairs of lanes a b a b.
  const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a.v, b.v, 0x88));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
CNNEXT_INLINE void interleave(Vec<float>& a, Vec<float>& b) {
  const __m256 low = _mm256_unpacklo_ps(a.v, b.v), high = _mm256_unpackhi_ps(a.v, b.v);
  a.v = _mm256_permute2f128_ps(low, high, 0x20);
  b.v = _mm256_permute2f128_ps(low, high, 0x31);
}

template <>
struct Vec<double> {
  using Scalar = double;
  struct Mask {
    __m256d v;
  };
  static constexpr int kWidth = 4;
  static constexpr bool kMasksAreFree = false;
  static constexpr bool kHasPick = false;
  struct Lanes {
    __m256i mask;
    CNNEXT_INLINE explicit Lanes(uint32_t set) {
      const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
      mask = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(set), bit), bit);
    }
  };
  __m256d v;

  Vec() = default;
  CNNEXT_INLINE Vec(__m256d value) : v(value) {}
  CNNEXT_INLINE explicit Vec(double value) : v(_mm256_set1_pd(value)) {}
  CNNEXT_INLINE static Vec zero() { return _mm256_setzero_pd(); }
  CNNEXT_INLINE double first() const { return _mm256_cvtsd_f64(v); }

  CNNEXT_INLINE static Vec load(const double* p) { return _mm256_loadu_pd(p); }
  CNNEXT_INLINE static Vec load(const double* p, int n) { return _mm256_maskload_pd(p, first_lanes4(n)); }
  CNNEXT_INLINE static Vec load(const double* p, Lanes lanes) { return _mm256_maskload_pd(p, lanes.mask); }
  CNNEXT_INLINE void store(double* p) const { _mm256_storeu_pd(p, v); }
  CNNEXT_INLINE void store(double* p, int n) const { _mm256_maskstore_pd(p, first_lanes4(n), v); }
};

CNNEXT_INLINE Vec<double> operator+(Vec<double> a, Vec<double> b) { return _mm256_add_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> operator-(Vec<double> a, Vec<double> b) { return _mm256_sub_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> operator*(Vec<double> a, Vec<double> b) { return _mm256_mul_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> operator/(Vec<double> a, Vec<double> b) { return _mm256_div_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm256_fmadd_pd(a.v, b.v, c.v); }
CNNEXT_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a.v, b.v); }
CNNEXT_INLINE Vec<double>::Mask less(Vec<double> a, Vec<double> b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
CNNEXT_INLINE Vec<double> select(Vec<double>::Mask mask, Vec<double> a, Vec<double> b) {
  return _mm256_blendv_pd(b.v, a.v, mask.v);
}
CNNEXT_INLINE Vec<double> abs(Vec<double> a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v); }
CNNEXT_INLINE Vec<double> round(Vec<double> a) {
  return _mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
CNNEXT_INLINE Vec<double> exp2_of_integer(Vec<double> n) {
  const __m256i exponent = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.v)), _mm256_set1_epi64x(1023));
  return _mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52));
}
CNNEXT_INLINE double sum(Vec<double> a) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
CNNEXT_INLINE Vec<double> even_lanes(Vec<double> a, Vec<double> b) {
  return _mm256_permute4x64_pd(_mm256_unpacklo_pd(a.v, b.v), 0xd8);
}
CNNEXT_INLINE void interleave(Vec<double>& a, Vec<double>& b) {
  const __m256d low = _mm256_unpacklo_pd(a.v, b.v), high = _mm256_unpackhi_pd(a.v, b.v);
  a.v = _mm256_permute2f128_pd(low, high, 0x20);
  b.v = _mm256_permute2f128_pd(low, high, 0x31);
}

}  // namespace cnnext::cpu::CNNEXT_ISA
