#pragma once

#include <cstdint>

#include "simd.h"
#include "word.h"

// Dot products of columns: of four lines of 16 signed bytes, -127 .. 127, with four numbers of
// -32512 .. 32512.
//
//   LineDot
//     Lines load(from, stride)         `from` points to the first of the lines
//     Lines load_adjacent(from)        of which each follows the one before
//     put(to, Vec)                     Vec::width whole numbers, arranged in kNumberBytes each
//     add<r>(Sum&, Lines, const uint8_t*)
//                                      columns r * Vec::width on, times the four numbers there
//     Vec end(Sum, zero)               the sum, exact before it becomes fp32 if it is below 2^31;
//                                      `zero` is -128 times the sum of the numbers
//   kSumRegisters       of a Sum

namespace qwell::QWELL_ISA {
namespace {

inline constexpr int kNumberBytes = 2;

}  // namespace
}  // namespace qwell::QWELL_ISA

#if defined(QWELL_ISA_AVX512) || defined(QWELL_ISA_AVX512_BF16)
#include "lines_avx512.h"
#elif defined(QWELL_ISA_AVX2)
#include "lines_avx2.h"
#elif defined(QWELL_ISA_NEON) || defined(QWELL_ISA_NEON_DOTPROD)
#include "lines_neon.h"
#else
#include "lines_portable.h"
#endif
