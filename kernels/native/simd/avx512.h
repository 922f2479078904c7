#pragma once

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#include "../dtype.h"

namespace qwell::QWELL_ISA {
namespace {

inline constexpr int kVectorRegisters = 32;

struct Vec {
  static constexpr int width = 16;
  __m512 v;
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec splat(float value) { return {_mm512_set1_ps(value)}; }

inline constexpr bool kFused = true;
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline float max_lane(Vec a) { return _mm512_reduce_max_ps(a.v); }

inline Vec times_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

inline __m256i load_16bit(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

inline Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }

inline Vec load(const BFloat16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(load_16bit(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

inline Vec load(const Float16* from) { return {_mm512_cvtph_ps(load_16bit(from))}; }

inline Vec load(const std::int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

// The nearest bfloat16, ties to even, in the upper half of each lane; the lower half is zero.
inline __m512i bfloat16_bits(Vec value) {
  const __m512i bits = _mm512_castps_si512(value.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
  const __m512i nearest = _mm512_add_epi32(bits, bias);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(value.v, value.v, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_blend_epi32(is_nan, nearest, _mm512_set1_epi32(0x7FC00000));
  return _mm512_and_si512(chosen, _mm512_set1_epi32(static_cast<int>(0xFFFF0000U)));
}

inline void store(float* to, Vec value) { _mm512_storeu_ps(to, value.v); }

inline void store(BFloat16* to, Vec value) {
  const __m256i packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bfloat16_bits(value), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}

inline void store(Float16* to, Vec value) {
  const __m256i packed = _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}

inline void store(std::int8_t* to, Vec value) {
  const __m128i packed = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value.v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}

template <class T>
Vec rounded(Vec value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {_mm512_castsi512_ps(bfloat16_bits(value))};
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {_mm512_cvtph_ps(_mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT))};
  } else {
    return value;
  }
}

}  // namespace
}  // namespace qwell::QWELL_ISA
