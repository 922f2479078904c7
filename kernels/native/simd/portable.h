#pragma once

#include <cstdint>
#include <cstring>

#include "../dtype.h"

namespace qwell::QWELL_ISA {
namespace {

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

inline void narrow(float value, float& out) { out = value; }

inline void narrow(float value, BFloat16& out) {
  const std::uint32_t bits = to_bits(value);
  const std::uint32_t nearest_even = bits + 0x7FFFU + ((bits >> 16) & 1U);
  out.bits = static_cast<std::uint16_t>(value != value ? 0x7FC0U : nearest_even >> 16);
}

inline void narrow(float value, Float16& out) {
  const std::uint32_t bits = to_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  std::uint32_t half;
  if (magnitude > 0x7F800000U) {
    half = 0x7E00U;
  } else if (magnitude >= 0x477FF000U) {  // 65520, halfway to the value after the largest
    half = 0x7C00U;
  } else if (magnitude < 0x38800000U) {  // 2^-14: below, the spacing is 2^-24, as it is above 0.5
    half = to_bits(from_bits(magnitude) + 0.5F) - to_bits(0.5F);
  } else {
    const std::uint32_t nearest_even = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
    half = (nearest_even >> 13) - ((127U - 15U) << 10);
  }
  out.bits = static_cast<std::uint16_t>(sign | half);
}

struct Vec {
  static constexpr int width = 4;
  float lane[width];
};

inline Vec operator+(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] += b.lane[i];
  return a;
}

inline Vec operator*(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] *= b.lane[i];
  return a;
}

inline Vec splat(float value) {
  Vec out;
  for (float& lane : out.lane) lane = value;
  return out;
}

template <class T>
Vec load(const T* from) {
  Vec out;
  for (int i = 0; i < Vec::width; ++i) out.lane[i] = widen(from[i]);
  return out;
}

template <class T>
void store(T* to, Vec value) {
  for (int i = 0; i < Vec::width; ++i) narrow(value.lane[i], to[i]);
}

template <class T>
Vec rounded(Vec value) {
  T narrowed[Vec::width];
  store(narrowed, value);
  return load(narrowed);
}

}  // namespace
}  // namespace qwell::QWELL_ISA
