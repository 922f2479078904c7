#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "dtype.h"

// 2^exponent, a normal number: most of the tests' time would be std::ldexp's.
inline double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

// Number formats by the definition of IEEE 754, in double precision and without a shared line
// with the kernels' own conversions.
struct NumberFormat {
  const char* name;
  qwell::DType dtype;
  int bytes;
  int mantissa_bits;  // stored ones
  int exponent_bits;

  double epsilon() const { return power_of_two(-mantissa_bits); }
  int smallest_exponent() const { return 2 - (1 << (exponent_bits - 1)); }
  double smallest_subnormal() const { return power_of_two(smallest_exponent() - mantissa_bits); }

  // The nearest value of the format, ties to even.
  double round(double value) const {
    if (!std::isfinite(value) || value == 0.0) return value;
    const int exponent = std::max(std::ilogb(value), smallest_exponent());
    const double spacing = power_of_two(exponent - mantissa_bits);
    const double rounded = std::nearbyint(value / spacing) * spacing;
    const double limit = power_of_two(1 << (exponent_bits - 1));
    return std::abs(rounded) >= limit
               ? std::copysign(std::numeric_limits<double>::infinity(), value)
               : rounded;
  }

  double decode(std::uint32_t bits) const {
    const std::uint32_t mantissa = bits & ((1U << mantissa_bits) - 1U);
    const std::uint32_t all_ones = (1U << exponent_bits) - 1U;
    const std::uint32_t biased = (bits >> mantissa_bits) & all_ones;
    const double sign = (bits >> (mantissa_bits + exponent_bits)) != 0 ? -1.0 : 1.0;
    if (biased == all_ones) {
      return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                           : sign * std::numeric_limits<double>::infinity();
    }
    if (biased == 0) return sign * mantissa * smallest_subnormal();
    const double significand = mantissa + power_of_two(mantissa_bits);
    const int exponent = static_cast<int>(biased) - 1 + smallest_exponent() - mantissa_bits;
    return sign * significand * power_of_two(exponent);
  }

  // Bits of a finite value that the format holds.
  std::uint32_t encode(double value) const {
    const std::uint32_t sign = std::signbit(value) ? 1U << (mantissa_bits + exponent_bits) : 0U;
    const double magnitude = std::abs(value);
    if (magnitude < power_of_two(smallest_exponent())) {
      return sign | static_cast<std::uint32_t>(magnitude / smallest_subnormal());
    }
    const int exponent = std::ilogb(magnitude);
    const auto significand =
        static_cast<std::uint32_t>(magnitude * power_of_two(mantissa_bits - exponent));
    const auto biased = static_cast<std::uint32_t>(exponent - smallest_exponent() + 1);
    return sign | biased << mantissa_bits | (significand & ((1U << mantissa_bits) - 1U));
  }
};

inline constexpr NumberFormat formats[] = {
    {"float32", qwell::DType::float32, 4, 23, 8},
    {"bfloat16", qwell::DType::bfloat16, 2, 7, 8},
    {"float16", qwell::DType::float16, 2, 10, 5},
};
