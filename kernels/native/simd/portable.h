#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../widen.h"

namespace qwell::QWELL_ISA {
namespace {

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

inline void narrow(float value, std::int8_t& out) {
  // Adding 1.5 * 2^23 rounds to an integer.
  out = static_cast<std::int8_t>(value + 0x1.8p23F - 0x1.8p23F);
}

inline constexpr int kVectorRegisters = 16;

struct Vec {
  static constexpr int width = 4;
  float lane[width];
};

inline Vec operator+(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] += b.lane[i];
  return a;
}

inline Vec operator-(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] -= b.lane[i];
  return a;
}

inline Vec operator*(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] *= b.lane[i];
  return a;
}

inline Vec operator/(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] /= b.lane[i];
  return a;
}

inline Vec min(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

inline Vec max(Vec a, Vec b) {
  for (int i = 0; i < Vec::width; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}

inline float max_lane(Vec a) {
  float most = a.lane[0];
  for (float lane : a.lane) most = lane > most ? lane : most;
  return most;
}

// In two factors: each a normal number, where 2^n need not be one.
inline Vec times_power_of_two(Vec a, Vec n) {
  for (int i = 0; i < Vec::width; ++i) {
    // The sum's lowest bits count: no conversion, which a NaN does not have.
    const std::uint32_t whole = to_bits(n.lane[i] + 0x1.8p23F) - to_bits(0x1.8p23F) + 256;
    const std::uint32_t half = whole >> 1;
    a.lane[i] *= from_bits((half - 128 + 127) << 23);
    a.lane[i] *= from_bits((whole - half - 128 + 127) << 23);
  }
  return a;
}

inline Vec splat(float value) {
  Vec out;
  for (float& lane : out.lane) lane = value;
  return out;
}

inline constexpr bool kFused = false;
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

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
