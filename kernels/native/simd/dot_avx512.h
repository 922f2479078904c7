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
struct Pairs {
  __m512i v;
};

inline Pairs load_pairs(const void* from) { return {_mm512_loadu_si512(from)}; }

inline void store_pairs(void* to, Pairs pairs) { _mm512_storeu_si512(to, pairs.v); }

inline Pairs zip_lines(__m512i lines) {
  const __m512i order = _mm512_set_epi32(0x1F000F, 0x1E000E, 0x1D000D, 0x1C000C, 0x1B000B, 0x1A000A,
                                         0x190009, 0x180008, 0x170007, 0x160006, 0x150005, 0x140004,
                                         0x130003, 0x120002, 0x110001, 0x100000);
  return {_mm512_permutexvar_epi16(order, lines)};
}

inline Pairs zip(const BFloat16* first, const BFloat16* second) {
  const __m512i line = _mm512_castsi256_si512(load_16bit(first));
  return zip_lines(_mm512_inserti64x4(line, load_16bit(second), 1));
}

inline Pairs zip_adjacent(const BFloat16* first) { return zip_lines(_mm512_loadu_si512(first)); }

inline Pairs only(Pairs pairs, bool first, bool second) {
  const std::uint32_t kept = (first ? 0xFFFFU : 0U) | (second ? 0xFFFF0000U : 0U);
  return {_mm512_and_si512(pairs.v, _mm512_set1_epi32(static_cast<int>(kept)))};
}

inline Vec store_rounded(BFloat16* to, Vec values) {
  const __m256i bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

inline Vec dot_pairs(Vec sum, Pairs pairs, std::uint32_t pair) {
  const __m512i other = _mm512_set1_epi32(static_cast<int>(pair));
  return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(pairs.v),
                           reinterpret_cast<__m512bh>(other))};
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
