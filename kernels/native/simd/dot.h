#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"
#include "word.h"

// Dot products of codes, Vec::width rows of four columns each, with four signed bytes:
//
//   Codes               load_codes(const uint8_t*), low_halves(Codes), high_halves(Codes)
//   Int8Dot, Int4Dot    of codes 1 .. 255 with zero point 128, and 0 .. 15 with 8
//     Weights prepare(Codes)           once for all that they are multiplied with
//     Sum begin(zero)                  exact sums of up to 32 columns
//     put_quad(to, const int8_t*)      four bytes of -127 .. 127, arranged in kQuadBytes
//     Quad load_quad(const uint8_t*)
//     add(Sum&, Weights, Quad)
//     Vec end(Sum, zero)               sum (code - zero point) * x; `zero` points to the bytes'
//                                      sum times the negated zero point
//   kIntTokens          tokens whose sums fit the registers
//
// Of bfloat16, two columns of a row in a word. With QWELL_BF16_DOT:
//
//   Pairs               of Vec::width rows: load_pairs(from), store_pairs(to, Pairs)
//   zip(first, second)  Pairs of the elements of two lines; zip_adjacent(first), if one follows
//                       the other
//   only(Pairs, bool first, bool second)
//                       with zeros instead of the columns that are not wanted
//   dot_pairs(sum, Pairs, pair)
//                       sum + w0 * x0 + w1 * x1
//   store_rounded(to, Vec)
//                       stores bfloat16, subnormal ones as 0, and returns what they are
//
// Without it even_of_pairs(from) and odd_of_pairs(from) widen one column of Vec::width words.

namespace qwell::QWELL_ISA {
namespace {

struct ByteQuads {
  using Quad = std::int32_t;
  static constexpr int kQuadBytes = 4;
  static void put_quad(std::uint8_t* to, const std::int8_t* bytes) { std::memcpy(to, bytes, 4); }
  static Quad load_quad(const std::uint8_t* from) { return load_word(from); }
};

}  // namespace
}  // namespace qwell::QWELL_ISA

#if defined(QWELL_ISA_AVX512) || defined(QWELL_ISA_AVX512_BF16)
#include "dot_avx512.h"
#elif defined(QWELL_ISA_AVX2)
#include "dot_avx2.h"
#elif defined(QWELL_ISA_NEON) || defined(QWELL_ISA_NEON_DOTPROD)
#include "dot_neon.h"
#else
#include "dot_portable.h"
#endif
