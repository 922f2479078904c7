#pragma once

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#include "../dtype.h"

namespace qwell::QWELL_ISA {
namespace {

inline constexpr int kVectorRegisters = 16;

struct Vec {
  static constexpr int width = 8;
  __m256 v;
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec splat(float value) { return {_mm256_set1_ps(value)}; }

inline constexpr bool kFused = true;
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

inline float max_lane(Vec a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// In two factors: each a normal number, where 2^n need not be one.
inline Vec times_power_of_two(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const auto power = [](__m256i exponent) {
    const __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  };
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, power(half)), power(_mm256_sub_epi32(whole, half)))};
}

inline __m128i load_16bit(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}

inline Vec load(const float* from) { return {_mm256_loadu_ps(from)}; }

inline Vec load(const BFloat16* from) {
  const __m256i wide = _mm256_cvtepu16_epi32(load_16bit(from));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}

inline Vec load(const Float16* from) { return {_mm256_cvtph_ps(load_16bit(from))}; }

inline Vec load(const std::int8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}

// The nearest bfloat16, ties to even, in the upper half of each lane; the lower half is zero.
inline __m256i bfloat16_bits(Vec value) {
  const __m256i bits = _mm256_castps_si256(value.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
  const __m256i nearest = _mm256_add_epi32(bits, bias);
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value.v, value.v, _CMP_UNORD_Q));
  const __m256i chosen = _mm256_blendv_epi8(nearest, _mm256_set1_epi32(0x7FC00000), is_nan);
  return _mm256_and_si256(chosen, _mm256_set1_epi32(static_cast<int>(0xFFFF0000U)));
}

inline void store(float* to, Vec value) { _mm256_storeu_ps(to, value.v); }

inline void store(BFloat16* to, Vec value) {
  const __m256i bits = _mm256_srli_epi32(bfloat16_bits(value), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}

inline void store(Float16* to, Vec value) {
  const __m128i packed = _mm256_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}

inline void store(std::int8_t* to, Vec value) {
  const __m256i whole = _mm256_cvtps_epi32(value.v);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

template <class T>
Vec rounded(Vec value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {_mm256_castsi256_ps(bfloat16_bits(value))};
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {_mm256_cvtph_ps(_mm256_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT))};
  } else {
    return value;
  }
}

}  // namespace
}  // namespace qwell::QWELL_ISA
