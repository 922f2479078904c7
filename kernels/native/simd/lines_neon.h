#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace qwell::QWELL_ISA {
namespace {

// Of signed bytes: a number is two of them, 256 * high + low. Four numbers are their high bytes and
// then their low ones.
struct LineDot {
  struct Lines {
    int8x16_t v[4];
  };
  struct Sum {
    int32x4_t high;
    int32x4_t low;
  };
  static constexpr int kSumRegisters = 2;

  static Lines load(const std::int8_t* from, std::int64_t stride) {
    const int8x16_t a = vld1q_s8(from);
    const int8x16_t b = vld1q_s8(from + stride);
    const int8x16_t c = vld1q_s8(from + 2 * stride);
    const int8x16_t d = vld1q_s8(from + 3 * stride);
    const int8x16_t ac[2] = {vzip1q_s8(a, c), vzip2q_s8(a, c)};
    const int8x16_t bd[2] = {vzip1q_s8(b, d), vzip2q_s8(b, d)};
    return {{vzip1q_s8(ac[0], bd[0]), vzip2q_s8(ac[0], bd[0]), vzip1q_s8(ac[1], bd[1]),
             vzip2q_s8(ac[1], bd[1])}};
  }
  static Lines load_adjacent(const std::int8_t* from) { return load(from, 16); }

  static void put(std::uint8_t* to, Vec numbers) {
    const int16x4_t low = vmovn_s32(vcvtnq_s32_f32(numbers.v));
    const int16x4_t high = vshr_n_s16(vadd_s16(low, vdup_n_s16(128)), 8);
    vst1_s8(reinterpret_cast<std::int8_t*>(to), vmovn_s16(vcombine_s16(high, low)));
  }

  static Sum begin() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }

  template <int Register>
  static void add(Sum& sum, const Lines& lines, const std::uint8_t* numbers) {
    sum.high = dot(sum.high, lines.v[Register], load_word(numbers));
    sum.low = dot(sum.low, lines.v[Register], load_word(numbers + 4));
  }

  static Vec end(const Sum& sum, std::int32_t) {
    return {vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(sum.high, 8), sum.low))};
  }

 private:
  static int32x4_t dot(int32x4_t sum, int8x16_t bytes, std::int32_t word) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(word));
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, bytes, x);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(bytes), vget_low_s8(x));
    const int16x8_t high = vmull_s8(vget_high_s8(bytes), vget_high_s8(x));
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  }
};

}  // namespace
}  // namespace qwell::QWELL_ISA
