#pragma once

#include "simd.h"

namespace qwell::QWELL_ISA {
namespace {

// e^x within 1 ulp: exactly 0 for -inf and 1 for 0, inf from 88.73 on, NaN for NaN. The same bits
// on every instruction set that fuses.
inline Vec exp(Vec x) {
  // Past these bounds the result is 0 or inf already; inside, its exponent can be computed.
  const Vec clamped = max(splat(-104.0F), min(splat(89.0F), x));
  // x = n ln 2 + r with an integer n, |r| <= ln 2 / 2: adding 1.5 * 2^23 rounds to an integer.
  const Vec shift = splat(0x1.8p23F);
  const Vec n = fma(clamped, splat(0x1.715476p0F), shift) - shift;
  // ln 2 in two parts; the first has few enough bits that its product with n is exact.
  const Vec r = fma(n, splat(0x1.bd0106p-13F), fma(n, splat(-0x1.63p-1F), clamped));
  // e^r = 1 + r + r^2 p(r), p of least largest relative error of the whole: 0.05 ulp.
  Vec p = splat(0x1.6a235ep-10F);
  p = fma(p, r, splat(0x1.123a7p-7F));
  p = fma(p, r, splat(0x1.5558f4p-5F));
  p = fma(p, r, splat(0x1.55549p-3F));
  p = fma(p, r, splat(0x1.fffffcp-2F));
  return times_power_of_two(fma(r * r, p, r) + splat(1.0F), n);
}

}  // namespace
}  // namespace qwell::QWELL_ISA
