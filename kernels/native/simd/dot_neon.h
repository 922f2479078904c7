#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace qwell::QWELL_ISA {
namespace {

struct Codes {
  uint8x16_t v;
};

inline Codes load_codes(const std::uint8_t* from) { return {vld1q_u8(from)}; }
inline Codes low_halves(Codes a) { return {vandq_u8(a.v, vdupq_n_u8(0x0F))}; }
inline Codes high_halves(Codes a) { return {vshrq_n_u8(a.v, 4)}; }

// Products of signed bytes: the zero point is taken from the codes.
template <std::uint8_t Zero>
struct SignedDot : ByteQuads {
  using Sum = int32x4_t;
  using Weights = int8x16_t;
  static Weights prepare(Codes codes) {
    return vreinterpretq_s8_u8(vsubq_u8(codes.v, vdupq_n_u8(Zero)));
  }
  static Sum begin(const std::int32_t*) { return vdupq_n_s32(0); }
  static void add(Sum& sum, const Weights& weights, std::int32_t quad) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(quad));
#if defined(__ARM_FEATURE_DOTPROD)
    sum = vdotq_s32(sum, weights, x);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(x));
    const int16x8_t high = vmull_s8(vget_high_s8(weights), vget_high_s8(x));
    sum = vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  }
  static Vec end(const Sum& sum, const std::int32_t*) { return {vcvtq_f32_s32(sum)}; }
};

using Int8Dot = SignedDot<128>;
using Int4Dot = SignedDot<8>;

inline constexpr int kIntTokens = 4;

inline Vec even_of_pairs(const std::uint8_t* from) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(vld1q_u8(from)), 16))};
}
inline Vec odd_of_pairs(const std::uint8_t* from) {
  const uint32x4_t upper = vdupq_n_u32(0xFFFF0000);
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(vld1q_u8(from)), upper))};
}

}  // namespace
}  // namespace qwell::QWELL_ISA
