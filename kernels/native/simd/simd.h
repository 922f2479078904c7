#pragma once

// The fp32 vector of the instruction set QWELL_ISA that this unit is compiled for:
//
//   Vec                  Vec::width lanes, with + - * /
//   kVectorRegisters     how many of them a core has
//   splat(float)         one value in all lanes
//   load(const T*)       Vec::width elements, unaligned, widened to fp32
//   fma(a, b, c)         a * b + c, rounded once if kFused and twice where there is no such thing
//   min(a, b), max(a, b) NaN where b is NaN
//   max_lane(Vec)        the largest lane; any number if one is NaN
//   times_power_of_two(a, n)
//                        a * 2^n, rounded once, for a of 0.5 .. 2 and integers n of -200 .. 200
//   store(T*, Vec)       rounds to nearest even and stores, unaligned; NaN stays NaN
//   rounded<T>(Vec)      rounds to T and back
//
// T is float, BFloat16 or Float16; of load and store also std::int8_t, for values of -128 .. 127.
// Everything is in namespace qwell::QWELL_ISA and internal to
// the unit: a function that the linker merged with another unit's copy could carry instructions
// to a processor that lacks them. For the same reason units that include this use no standard
// library function that is not inlined or a call to libc.

#if defined(QWELL_ISA_AVX512) || defined(QWELL_ISA_AVX512_BF16)
#include "avx512.h"
#elif defined(QWELL_ISA_AVX2)
#include "avx2.h"
#elif defined(QWELL_ISA_NEON) || defined(QWELL_ISA_NEON_DOTPROD)
#include "neon.h"
#elif defined(QWELL_ISA_PORTABLE)
#include "portable.h"
#else
#error "kernel units are compiled with one QWELL_ISA_... definition, see CMakeLists.txt"
#endif
