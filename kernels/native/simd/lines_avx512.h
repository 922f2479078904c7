#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qwell::QWELL_ISA {
namespace {

// VNNI multiplies unsigned bytes, which the lines become, with signed ones: a number is two of
// them, 256 * high + low. Four numbers are their high bytes and then their low ones.
struct LineDot {
  struct Lines {
    __m512i v;
  };
  struct Sum {
    __m512i high;
    __m512i low;
  };
  static constexpr int kSumRegisters = 2;

  static Lines load(const std::int8_t* from, std::int64_t stride) {
    __m512i lines = _mm512_castsi128_si512(load_line(from));
    lines = _mm512_inserti32x4(lines, load_line(from + stride), 1);
    lines = _mm512_inserti32x4(lines, load_line(from + 2 * stride), 2);
    return transposed(_mm512_inserti32x4(lines, load_line(from + 3 * stride), 3));
  }
  static Lines load_adjacent(const std::int8_t* from) {
    return transposed(_mm512_loadu_si512(from));
  }

  static void put(std::uint8_t* to, Vec numbers) {
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(numbers.v));
    const __m256i high = _mm256_srai_epi16(_mm256_add_epi16(low, _mm256_set1_epi16(128)), 8);
    const __m256i bytes = _mm256_mask_blend_epi8(0xAAAAAAAA, high, _mm256_slli_epi16(low, 8));
    const __m256i order = _mm256_set1_epi64x(0x0705030106040200);
    const __m256i upper = _mm256_set_epi64x(0x0808080808080808, 0, 0x0808080808080808, 0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_shuffle_epi8(bytes, _mm256_add_epi8(order, upper)));
  }

  static Sum begin() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }

  template <int Register>
  static void add(Sum& sum, const Lines& lines, const std::uint8_t* numbers) {
    static_assert(Register == 0);
    sum.high = _mm512_dpbusd_epi32(sum.high, lines.v, _mm512_set1_epi32(load_word(numbers)));
    sum.low = _mm512_dpbusd_epi32(sum.low, lines.v, _mm512_set1_epi32(load_word(numbers + 4)));
  }

  static Vec end(const Sum& sum, std::int32_t zero) {
    const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(sum.high, 8), sum.low);
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(both, _mm512_set1_epi32(zero)))};
  }

 private:
  static __m128i load_line(const std::int8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }

  // Columns of four bytes, plus 128: words of four columns side by side, and then their bytes.
  static Lines transposed(__m512i lines) {
    const __m512i columns =
        _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i bytes = _mm512_broadcast_i32x4(
        _mm_set_epi32(0x0F0B0703, 0x0E0A0602, 0x0D090501, 0x0C080400));
    const __m512i words = _mm512_permutexvar_epi32(columns, lines);
    return {_mm512_xor_si512(_mm512_shuffle_epi8(words, bytes), _mm512_set1_epi8(-128))};
  }
};

}  // namespace
}  // namespace qwell::QWELL_ISA
