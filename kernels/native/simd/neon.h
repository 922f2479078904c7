#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dtype.h"

namespace qwell::QWELL_ISA {
namespace {

inline constexpr int kVectorRegisters = 32;

struct Vec {
  static constexpr int width = 4;
  float32x4_t v;
};

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {vminq_f32(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }
inline Vec splat(float value) { return {vdupq_n_f32(value)}; }

inline constexpr bool kFused = true;
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }

inline float max_lane(Vec a) { return vmaxvq_f32(a.v); }

// In two factors: each a normal number, where 2^n need not be one.
inline Vec times_power_of_two(Vec a, Vec n) {
  const int32x4_t whole = vcvtnq_s32_f32(n.v);
  const int32x4_t half = vshrq_n_s32(whole, 1);
  const auto power = [](int32x4_t exponent) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(exponent, vdupq_n_s32(127)), 23));
  };
  return {vmulq_f32(vmulq_f32(a.v, power(half)), power(vsubq_s32(whole, half)))};
}

inline Vec load(const float* from) { return {vld1q_f32(from)}; }

inline Vec load(const BFloat16* from) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&from->bits), 16))};
}

inline Vec load(const Float16* from) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)))};
}

inline Vec load(const std::int8_t* from) {
  std::int32_t bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)))};
}

// The nearest bfloat16, ties to even, in the upper half of each lane; the lower half is zero.
inline uint32x4_t bfloat16_bits(Vec value) {
  const uint32x4_t bits = vreinterpretq_u32_f32(value.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t nearest = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
  const uint32x4_t is_number = vceqq_f32(value.v, value.v);
  const uint32x4_t chosen = vbslq_u32(is_number, nearest, vdupq_n_u32(0x7FC00000));
  return vandq_u32(chosen, vdupq_n_u32(0xFFFF0000));
}

inline void store(float* to, Vec value) { vst1q_f32(to, value.v); }

inline void store(BFloat16* to, Vec value) {
  vst1_u16(&to->bits, vshrn_n_u32(bfloat16_bits(value), 16));
}

inline void store(Float16* to, Vec value) {
  vst1_u16(&to->bits, vreinterpret_u16_f16(vcvt_f16_f32(value.v)));
}

inline void store(std::int8_t* to, Vec value) {
  const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(value.v));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
  const std::int32_t packed = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
  std::memcpy(to, &packed, sizeof(packed));
}

template <class T>
Vec rounded(Vec value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {vreinterpretq_f32_u32(bfloat16_bits(value))};
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {vcvt_f32_f16(vcvt_f16_f32(value.v))};
  } else {
    return value;
  }
}

}  // namespace
}  // namespace qwell::QWELL_ISA
