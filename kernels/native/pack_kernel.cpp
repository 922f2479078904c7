#include <cstdint>
#include <cstring>

#include "pack.h"
#include "simd/simd.h"

// Loops over the rows of a panel are the vectors here: compilers make them of plain code, and
// every instruction set and torch round alike, operation by operation.

namespace qwell::QWELL_ISA {
namespace {

constexpr float kLargestFloat32 = 0x1.FFFFFEp127F;
constexpr float kOverflowOfFloat16 = 65520.0F;  // rounds to infinity, as all above

// 32 columns of a panel, a column's 16 rows beside each other.
struct Block {
  alignas(64) float at[kGroup][kPanelRows];
};

struct Lanes {
  alignas(64) float at[kPanelRows];
};

template <class T>
void widen_group(const T* from, float* out) {
  for (std::int64_t i = 0; i < kGroup; i += Vec::width) store(out + i, load(from + i));
}

template <class T>
void load_row(const void* row, std::int64_t start, std::int64_t count, float* out) {
  const T* from = static_cast<const T*>(row) + start;
  if (count == kGroup) return widen_group(from, out);
  T padded[kGroup] = {};
  std::memcpy(padded, from, static_cast<std::size_t>(count) * sizeof(T));
  widen_group(padded, out);
}

void load_row(const StoredRow& row, std::int64_t start, std::int64_t count, float* out) {
  if (row.data == nullptr) {
    for (std::int64_t i = 0; i < kGroup; ++i) out[i] = 0;
    return;
  }
  switch (row.dtype) {
    case DType::float32:
      return load_row<float>(row.data, start, count, out);
    case DType::bfloat16:
      return load_row<BFloat16>(row.data, start, count, out);
    case DType::float16:
      return load_row<Float16>(row.data, start, count, out);
  }
}

// Columns past `count` are zero.
void load_block(const StoredRow* rows, std::int64_t start, std::int64_t count, Block& x) {
  alignas(64) float row[kGroup];
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    load_row(rows[r], start, count, row);
    for (std::int64_t c = 0; c < kGroup; ++c) x.at[c][r] = row[c];
  }
}

float magnitude(float x) { return __builtin_fabsf(x); }

// Whether a row's magnitudes are below the limit; NaN is not.
bool below(const Block& x, std::int64_t row, float limit) {
  bool all = true;
  for (std::int64_t c = 0; c < kGroup; ++c) all &= magnitude(x.at[c][row]) < limit;
  return all;
}

template <class T>
void store_lanes(T* to, const float* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += Vec::width) store(to + i, load(from + i));
}

// Scales of a group, as float16 holds them, and how weights are divided by them: a scale of 0
// makes every integer 0.
struct Scales {
  Lanes values;
  Lanes divisors;
  Lanes keep;  // 1, or 0 where the scale is
  bool fit;    // none is beyond float16
};

Scales scales_of(const Lanes& exact) {
  Scales scales;
  scales.fit = true;
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    scales.fit &= magnitude(exact.at[r]) < kOverflowOfFloat16;
  }
  for (std::int64_t r = 0; r < kPanelRows; r += Vec::width) {
    store(scales.values.at + r, rounded<Float16>(load(exact.at + r)));
  }
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    const bool zero = scales.values.at[r] == 0;
    scales.divisors.at[r] = zero ? 1.0F : scales.values.at[r];
    scales.keep.at[r] = zero ? 0.0F : 1.0F;
  }
  return scales;
}

// The integer of low .. high nearest to x / divisor, ties to even.
float to_integer(float x, float divisor, float low, float high) {
  // Adding it leaves no bits below 1.
  constexpr float kIntegers = 0x1.8p23F;
  const float quotient = x / divisor;
  const float above = quotient < low ? low : quotient;
  const float clamped = above > high ? high : above;
  return (clamped + kIntegers) - kIntegers;
}

using Codes = std::int32_t[kGroup][kPanelRows];

void encode(const Block& x, const Scales& scales, float low, float high, int zero, Codes& codes) {
  for (std::int64_t c = 0; c < kGroup; ++c) {
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      const float integer = to_integer(x.at[c][r], scales.divisors.at[r], low, high);
      codes[c][r] = static_cast<std::int32_t>(integer * scales.keep.at[r]) + zero;
    }
  }
}

// Lines of words that hold four columns of a row each; processors here are little-endian.
void store_lines(const Codes& codes, std::int64_t columns, char* out) {
  for (std::int64_t c = 0; c < columns; c += 4) {
    std::int32_t words[kPanelRows];
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      words[r] = codes[c][r] | codes[c + 1][r] << 8 | codes[c + 2][r] << 16 | codes[c + 3][r] << 24;
    }
    std::memcpy(out + c * kPanelRows, words, sizeof(words));
  }
}

// The weight of largest magnitude of each row, the first of equal ones; false if one is not finite.
bool find_largest(const Block& x, Lanes& largest) {
  Lanes most{};
  int finite[kPanelRows];
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    largest.at[r] = x.at[0][r];
    most.at[r] = magnitude(x.at[0][r]);
    finite[r] = most.at[r] <= kLargestFloat32;
  }
  for (std::int64_t c = 1; c < kGroup; ++c) {
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      const float m = magnitude(x.at[c][r]);
      finite[r] &= m <= kLargestFloat32;
      largest.at[r] = m > most.at[r] ? x.at[c][r] : largest.at[r];
      most.at[r] = m > most.at[r] ? m : most.at[r];
    }
  }
  int all = 1;
  for (const int one : finite) all &= one;
  return all != 0;
}

// Squared errors of the 4-bit integers that scales give, added by halves as int_groups.py does.
Lanes int4_errors(const Block& x, const Scales& scales) {
  Block errors;
  for (std::int64_t c = 0; c < kGroup; ++c) {
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      const float integer = to_integer(x.at[c][r], scales.divisors.at[r], -8, 7);
      const float error = integer * scales.keep.at[r] * scales.values.at[r] - x.at[c][r];
      errors.at[c][r] = error * error;
    }
  }
  for (std::int64_t half = kGroup / 2; half > 0; half /= 2) {
    for (std::int64_t c = 0; c < half; ++c) {
      for (std::int64_t r = 0; r < kPanelRows; ++r) errors.at[c][r] += errors.at[c + half][r];
    }
  }
  Lanes sums;
  for (std::int64_t r = 0; r < kPanelRows; ++r) sums.at[r] = errors.at[0][r];
  return sums;
}

// The scales of least error, of the candidates of int_groups.py; those of a divisor that comes first win over equal ones.
Scales choose_int4_scales(const Block& x, const Lanes& largest) {
  constexpr float kDivisors[] = {-8.0F, -8.5F, -9.0F, -9.5F, -7.5F, -7.0F, 7.0F};
  Lanes best{};
  Lanes least;
  for (float& error : least.at) error = kLargestFloat32;
  bool fit = true;
  for (const float divisor : kDivisors) {
    Lanes exact;
    for (std::int64_t r = 0; r < kPanelRows; ++r) exact.at[r] = largest.at[r] / divisor;
    const Scales scales = scales_of(exact);
    fit &= scales.fit;
    const Lanes errors = int4_errors(x, scales);
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      const bool better = errors.at[r] < least.at[r];
      best.at[r] = better ? scales.values.at[r] : best.at[r];
      least.at[r] = better ? errors.at[r] : least.at[r];
    }
  }
  Scales chosen = scales_of(best);
  chosen.fit = fit;
  return chosen;
}

bool pack_int8(const Block& x, char* out) {
  Lanes exact;
  if (!find_largest(x, exact)) return false;
  for (float& scale : exact.at) scale = magnitude(scale) / 127;
  const Scales scales = scales_of(exact);
  Codes codes;
  encode(x, scales, -127, 127, 128, codes);
  store_lanes(reinterpret_cast<Float16*>(out), scales.values.at, kPanelRows);
  store_lines(codes, kGroup, out + kPanelRows * 2);
  return scales.fit;
}

bool pack_int4(const Block& x, char* out) {
  Lanes largest;
  if (!find_largest(x, largest)) return false;
  const Scales scales = choose_int4_scales(x, largest);
  Codes codes;
  encode(x, scales, -8, 7, 8, codes);
  for (std::int64_t c = 0; c < kGroup / 2; ++c) {
    for (std::int64_t r = 0; r < kPanelRows; ++r) codes[c][r] |= codes[c + kGroup / 2][r] << 4;
  }
  store_lanes(reinterpret_cast<Float16*>(out), scales.values.at, kPanelRows);
  store_lines(codes, kGroup / 2, out + kPanelRows * 2);
  return scales.fit;
}

void pack_bf16(const Block& x, std::int64_t count, char* out) {
  auto* pairs = reinterpret_cast<BFloat16*>(out);
  for (std::int64_t c = 0; c < count; c += 2) {
    alignas(64) float pair[2 * kPanelRows];
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      pair[2 * r] = x.at[c][r];
      pair[2 * r + 1] = x.at[c + 1][r];
    }
    store_lanes(pairs + c * kPanelRows, pair, 2 * kPanelRows);
  }
}

bool pack_f16(const StoredRow* rows, const Block& x, std::int64_t count, char* out) {
  bool fits = true;
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    fits &= rows[r].dtype == DType::float16 || below(x, r, kOverflowOfFloat16);
  }
  store_lanes(reinterpret_cast<Float16*>(out), x.at[0], count * kPanelRows);
  return fits;
}

bool pack_block(WeightFormat format, const StoredRow* rows, const Block& x, std::int64_t count,
                char* out) {
  switch (format) {
    case WeightFormat::f32:
      std::memcpy(out, x.at, static_cast<std::size_t>(count * kPanelRows) * sizeof(float));
      return true;
    case WeightFormat::bf16:
      pack_bf16(x, count, out);
      return true;
    case WeightFormat::f16:
      return pack_f16(rows, x, count, out);
    case WeightFormat::int8:
      return pack_int8(x, out);
    case WeightFormat::int4:
      return pack_int4(x, out);
  }
  return false;
}

}  // namespace

bool pack_panel(WeightFormat format, const StoredRow* rows, std::int64_t columns, void* packed) {
  bool fits = true;
  for (std::int64_t start = 0; start < columns; start += kGroup) {
    const std::int64_t count = columns - start < kGroup ? columns - start : kGroup;
    Block x;
    load_block(rows, start, count, x);
    char* out = static_cast<char*>(packed) + panel_bytes(format, start);
    fits &= pack_block(format, rows, x, count, out);
  }
  return fits;
}

}  // namespace qwell::QWELL_ISA
