#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qwell::QWELL_ISA {
namespace {

struct Codes {
  __m256i v;
};

inline Codes load_codes(const std::uint8_t* from) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))};
}
inline Codes low_halves(Codes a) { return {_mm256_and_si256(a.v, _mm256_set1_epi8(0x0F))}; }
inline Codes high_halves(Codes a) { return low_halves({_mm256_srli_epi16(a.v, 4)}); }

// The product of unsigned by signed bytes adds two of them in 16 bits and saturates: of |code| <=
// 127 and |x| <= 127 it does not, so the sign of the code goes to x.
struct Int8Dot {
  using Sum = __m256i;
  struct Weights {
    __m256i magnitude;
    __m256i value;
  };
  static Weights prepare(Codes codes) {
    const __m256i value = _mm256_xor_si256(codes.v, _mm256_set1_epi8(-128));
    return {_mm256_abs_epi8(value), value};
  }
  static Sum begin(const std::int32_t*) { return _mm256_setzero_si256(); }
  static void add(Sum& sum, const Weights& weights, std::int32_t quad) {
    const __m256i x = _mm256_sign_epi8(_mm256_set1_epi32(quad), weights.value);
    const __m256i pairs = _mm256_maddubs_epi16(weights.magnitude, x);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Vec end(const Sum& sum, const std::int32_t*) { return {_mm256_cvtepi32_ps(sum)}; }
};

// Two products of a code <= 15 and |x| <= 127, and eight of those pairs: below 2^15. A group is
// summed in 16 bits.
struct Int4Dot {
  using Sum = __m256i;
  using Weights = Codes;
  static Weights prepare(Codes codes) { return codes; }
  static Sum begin(const std::int32_t*) { return _mm256_setzero_si256(); }
  static void add(Sum& sum, const Weights& codes, std::int32_t quad) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes.v, _mm256_set1_epi32(quad)));
  }
  static Vec end(const Sum& sum, const std::int32_t* zero) {
    const __m256i wide = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    return {_mm256_cvtepi32_ps(_mm256_add_epi32(wide, _mm256_set1_epi32(*zero)))};
  }
};

inline constexpr int kIntTokens = 4;

inline Vec even_of_pairs(const std::uint8_t* from) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))};
}
inline Vec odd_of_pairs(const std::uint8_t* from) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000U));
  return {_mm256_castsi256_ps(_mm256_and_si256(pairs, upper))};
}

}  // namespace
}  // namespace qwell::QWELL_ISA
