#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

namespace qwell {
namespace {  // a copy a unit: see simd/simd.h

inline std::uint32_t to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen(float value) { return value; }

inline float widen(std::int8_t value) { return value; }

inline float widen(BFloat16 value) { return from_bits(std::uint32_t{value.bits} << 16); }

inline float widen(Float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000U) << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1FU;
  const std::uint32_t mantissa = value.bits & 0x3FFU;
  if (exponent == 0x1FU) {
    const std::uint32_t quiet = mantissa != 0 ? 0x400000U : 0U;
    return from_bits(sign | 0x7F800000U | quiet | mantissa << 13);
  }
  if (exponent == 0) {
    const float subnormal = static_cast<float>(mantissa) * 0x1p-24F;
    return from_bits(sign | to_bits(subnormal));
  }
  return from_bits(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

}  // namespace
}  // namespace qwell
