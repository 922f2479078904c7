#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qwell::QWELL_ISA {
namespace {

struct Codes {
  __m512i v;
};

inline Codes load_codes(const std::uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline Codes low_halves(Codes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(0x0F))}; }
inline Codes high_halves(Codes a) { return low_halves({_mm512_srli_epi16(a.v, 4)}); }

// VNNI takes unsigned codes as they are: sums begin with what the zero point takes away.
struct UnsignedDot : ByteQuads {
  using Sum = __m512i;
  using Weights = Codes;
  static Weights prepare(Codes codes) { return codes; }
  static Sum begin(const std::int32_t* zero) { return _mm512_set1_epi32(*zero); }
  static void add(Sum& sum, const Weights& codes, std::int32_t quad) {
    sum = _mm512_dpbusd_epi32(sum, codes.v, _mm512_set1_epi32(quad));
  }
  static Vec end(const Sum& sum, const std::int32_t*) { return {_mm512_cvtepi32_ps(sum)}; }
};

using Int8Dot = UnsignedDot;
using Int4Dot = UnsignedDot;

inline constexpr int kIntTokens = 12;

#if defined(QWELL_ISA_AVX512_BF16)
#define QWELL_BF16_DOT
inline Vec dot_pairs(Vec sum, const void* weights, std::uint32_t pair) {
  const __m512i codes = _mm512_loadu_si512(weights);
  const __m512i pairs = _mm512_set1_epi32(static_cast<int>(pair));
  return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(codes),
                           reinterpret_cast<__m512bh>(pairs))};
}
#else
inline Vec even_of_pairs(const std::uint8_t* from) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16))};
}
inline Vec odd_of_pairs(const std::uint8_t* from) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000U));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from), upper))};
}
#endif

}  // namespace
}  // namespace qwell::QWELL_ISA
