#pragma once

#include <cstdint>

#include "attention_step.h"
#include "simd/lines.h"

// A step of attention over an int8 cache, in sums of integers: queries and weights become numbers
// of 16 bits, each row's with a scale of its own. The sums are exact, so in any order the same.
namespace qwell::QWELL_ISA {
namespace {

// Largest whole number: high bytes of signed pairs are then within +-127.
constexpr float kLargestNumber = 127.0F * 256.0F;

// What numbers are multiplied with, and -128 times their sum.
struct RowScale {
  float scale;
  std::int32_t zero;
};

// Lines of keys or of features that the registers hold sums for, times rows; rows at a time.
constexpr int kIntLines = kVectorRegisters * 3 / 4 / (kLine * LineDot::kSumRegisters);
constexpr int kIntRows = kIntLines < kMostRows ? kIntLines : kMostRows;
constexpr int int_lines(int rows) {
  int lines = kStepBlocks;
  while (lines * rows > kIntLines) lines /= 2;
  return lines;
}

// Makes whole numbers of values [count], a multiple of 16: none is off by more than 2^-16 of the
// largest. Where one is not finite the scale is NaN. Values that are all below 2^-100, where
// dividing by the scale might overflow, become zeros.
RowScale to_numbers(const float* values, std::int64_t count, std::uint8_t* numbers) {
  Vec largest = splat(0.0F);
  Vec flaws[1] = {splat(0.0F)};  // NaN in the lane of a value that is not finite
  for (std::int64_t i = 0; i < count; i += Vec::width) {
    const Vec value = load(values + i);
    largest = max(largest, max(value, splat(0.0F) - value));
    flaws[0] = flaws[0] + value * splat(0.0F);
  }
  const float flaw = sum_lanes(flaws);
  const float most = max_lane(largest);
  const bool usable = flaw == 0.0F && most > 0x1p-100F;
  const Vec inverse = splat(usable ? kLargestNumber / most : 0.0F);
  const Vec shift = splat(0x1.8p23F);  // adding it rounds to an integer
  Vec sums[1] = {splat(0.0F)};
  for (std::int64_t i = 0; i < count; i += Vec::width) {
    const Vec value = usable ? load(values + i) : splat(0.0F);
    const Vec number = value * inverse + shift - shift;
    sums[0] = sums[0] + number;
    LineDot::put(numbers + i * kNumberBytes, number);
  }
  // Below 2^24, so exact.
  const std::int32_t sum = static_cast<std::int32_t>(sum_lanes(sums));
  return {usable ? most / kLargestNumber : flaw, -128 * sum};
}

// Scores [Rows, 64] of q [Rows, width], for Lines lines of keys from block `block` on.
template <int Rows, int Lines>
void score_lines(const std::uint8_t* q, const RowScale* scales, const Step<std::int8_t>& step,
                 std::int64_t width, int block, float* scores) {
  LineDot::Sum sums[Rows][Lines][kLine];
  unroll<Rows>([&](auto r) QWELL_INLINE {
    unroll<Lines>([&](auto l) QWELL_INLINE {
      unroll<kLine>([&](auto c) QWELL_INLINE { sums[r][l][c] = LineDot::begin(); });
    });
  });
  for (std::int64_t d = 0; d < width; d += 4) {
    unroll<Lines>([&](auto l) QWELL_INLINE {
      const LineDot::Lines keys =
          LineDot::load_adjacent(step.now.keys[block + l] + d * kBlockTokens);
      prefetch(step.next.values[block + l], d * kBlockTokens);
      unroll<Rows>([&](auto r) QWELL_INLINE {
        unroll<kLine>([&](auto c) QWELL_INLINE {
          LineDot::add<c>(sums[r][l][c], keys, q + (r * width + d) * kNumberBytes);
        });
      });
    });
  }
  unroll<Rows>([&](auto r) QWELL_INLINE {
    unroll<Lines>([&](auto l) QWELL_INLINE {
      unroll<kLine>([&](auto c) QWELL_INLINE {
        const int lane = c * Vec::width;
        const Vec scale = load(step.now.key_scales[block + l] + lane) * splat(scales[r].scale);
        store(scores + r * kStepKeys + (block + l) * kBlockTokens + lane,
              LineDot::end(sums[r][l][c], scales[r].zero) * scale);
      });
    });
  });
}

// sums [Rows, width] += weights [Rows, 64] times the values of a step, for Lines lines of features.
template <int Rows, int Lines>
void mix_lines(const std::uint8_t* weights, const RowScale* scales,
               const Step<std::int8_t>& step, std::int64_t column, float* sums,
               std::int64_t width) {
  LineDot::Sum mixed[Rows][Lines][kLine];
  unroll<Rows>([&](auto r) QWELL_INLINE {
    unroll<Lines>([&](auto l) QWELL_INLINE {
      unroll<kLine>([&](auto c) QWELL_INLINE { mixed[r][l][c] = LineDot::begin(); });
    });
  });
  for (int key = 0; key < kStepKeys; key += 4) {
    const std::int64_t block = key / kBlockTokens;
    const std::int64_t token = key % kBlockTokens * step.value_stride;
    unroll<Lines>([&](auto l) QWELL_INLINE {
      const std::int64_t feature = column + l * kBlockTokens;
      const LineDot::Lines values =
          LineDot::load(step.now.values[block] + token + feature, step.value_stride);
      // Four lines of 16 bytes: as much of the next keys.
      prefetch(step.next.keys[block], token + 4 * feature);
      unroll<Rows>([&](auto r) QWELL_INLINE {
        unroll<kLine>([&](auto c) QWELL_INLINE {
          LineDot::add<c>(mixed[r][l][c], values, weights + (r * kStepKeys + key) * kNumberBytes);
        });
      });
    });
  }
  unroll<Rows>([&](auto r) QWELL_INLINE {
    unroll<Lines>([&](auto l) QWELL_INLINE {
      unroll<kLine>([&](auto c) QWELL_INLINE {
        float* sum = sums + r * width + column + l * kBlockTokens + c * Vec::width;
        const Vec step_sum = LineDot::end(mixed[r][l][c], scales[r].zero);
        store(sum, fma(step_sum, splat(scales[r].scale), load(sum)));
      });
    });
  });
}

template <int Rows>
void score_numbers(const std::uint8_t* q, const RowScale* scales, const Step<std::int8_t>& step,
                   std::int64_t width, float* scores) {
  constexpr int kLines = int_lines(Rows);
  for (int block = 0; block < kStepBlocks; block += kLines) {
    score_lines<Rows, kLines>(q, scales, step, width, block, scores);
  }
}

template <int Rows>
void mix_numbers(const std::uint8_t* weights, const RowScale* scales,
                 const Step<std::int8_t>& step, float* sums, std::int64_t width) {
  constexpr int kLines = int_lines(Rows);
  std::int64_t column = 0;
  for (; column + kLines * kBlockTokens <= width; column += kLines * kBlockTokens) {
    mix_lines<Rows, kLines>(weights, scales, step, column, sums, width);
  }
  for (; column < width; column += kBlockTokens) {
    mix_lines<Rows, 1>(weights, scales, step, column, sums, width);
  }
}

}  // namespace
}  // namespace qwell::QWELL_ISA
