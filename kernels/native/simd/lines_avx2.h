#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qwell::QWELL_ISA {
namespace {

// Pairs of lines, widened to the 16 bits of the numbers.
struct LineDot {
  struct Lines {
    __m256i pairs[2][2];  // of registers, of lines
  };
  struct Sum {
    __m256i v;
  };
  static constexpr int kSumRegisters = 1;

  static Lines load(const std::int8_t* from, std::int64_t stride) {
    const __m128i a = load_line(from);
    const __m128i b = load_line(from + stride);
    const __m128i c = load_line(from + 2 * stride);
    const __m128i d = load_line(from + 3 * stride);
    return {{{_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)),
              _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(c, d))},
             {_mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)),
              _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(c, d))}}};
  }
  static Lines load_adjacent(const std::int8_t* from) { return load(from, 16); }

  static void put(std::uint8_t* to, Vec numbers) {
    const __m256i whole = _mm256_cvtps_epi32(numbers.v);
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(to),
        _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
  }

  static Sum begin() { return {_mm256_setzero_si256()}; }

  template <int Register>
  static void add(Sum& sum, const Lines& lines, const std::uint8_t* numbers) {
    const __m256i first = _mm256_set1_epi32(load_word(numbers));
    const __m256i second = _mm256_set1_epi32(load_word(numbers + 4));
    sum.v = _mm256_add_epi32(sum.v, _mm256_madd_epi16(lines.pairs[Register][0], first));
    sum.v = _mm256_add_epi32(sum.v, _mm256_madd_epi16(lines.pairs[Register][1], second));
  }

  static Vec end(const Sum& sum, std::int32_t) { return {_mm256_cvtepi32_ps(sum.v)}; }

 private:
  static __m128i load_line(const std::int8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
};

}  // namespace
}  // namespace qwell::QWELL_ISA
