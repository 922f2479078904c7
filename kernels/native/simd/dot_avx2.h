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

// GCC would put off the additions of a whole group, and keep its products in memory meanwhile.
inline void add_now(__m256i& sum) { asm("" : "+x"(sum)); }

// Products of 16 bits: those of bytes would saturate, unless the signs of the codes went to x, and
// that instruction takes its turns with the multiplications. Codes and x are in the order 0 2, 1 3.
struct Int8Dot {
  using Sum = __m256i;
  struct Weights {
    __m256i even;
    __m256i odd;
  };
  struct Quad {
    __m256i even;
    __m256i odd;
  };
  static constexpr int kQuadBytes = 8;
  static Weights prepare(Codes codes) {
    const __m256i value = _mm256_xor_si256(codes.v, _mm256_set1_epi8(-128));
    return {_mm256_srai_epi16(_mm256_slli_epi16(value, 8), 8), _mm256_srai_epi16(value, 8)};
  }
  static void put_quad(std::uint8_t* to, const std::int8_t* bytes) {
    const std::int16_t ordered[4] = {bytes[0], bytes[2], bytes[1], bytes[3]};
    std::memcpy(to, ordered, sizeof(ordered));
  }
  static Quad load_quad(const std::uint8_t* from) {
    return {_mm256_set1_epi32(load_word(from)), _mm256_set1_epi32(load_word(from + 4))};
  }
  static Sum begin(const std::int32_t*) { return _mm256_setzero_si256(); }
  static void add(Sum& sum, const Weights& weights, const Quad& quad) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights.even, quad.even));
    add_now(sum);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights.odd, quad.odd));
    add_now(sum);
  }
  static Vec end(const Sum& sum, const std::int32_t*) { return {_mm256_cvtepi32_ps(sum)}; }
};

// Two products of a code <= 15 and |x| <= 127, and eight of those pairs: below 2^15. A group is
// summed in 16 bits.
struct Int4Dot : ByteQuads {
  using Sum = __m256i;
  using Weights = Codes;
  static Weights prepare(Codes codes) { return codes; }
  static Sum begin(const std::int32_t*) { return _mm256_setzero_si256(); }
  static void add(Sum& sum, const Weights& codes, std::int32_t quad) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes.v, _mm256_set1_epi32(quad)));
    add_now(sum);
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
