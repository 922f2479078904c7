// Compiled once per instruction set; QWELL_ISA names the set and the namespace. Loops over arrays
// of fixed length: compilers turn them into vector instructions, of doubles too.

#include <cstdint>
#include <cstring>

#include "logits.h"
#include "simd/simd.h"

namespace qwell::QWELL_ISA {
namespace {

// Partial results of a reduction: the same for every instruction set, and so its order.
constexpr int kLanes = 32;

inline double multiply_add(double a, double b, double c) {
  if constexpr (kFused) return __builtin_fma(a, b, c);
  return a * b + c;
}

inline std::uint64_t bits_of(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline double from_bits(std::uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// e^x for x <= 0.
inline double exp(double x) {
  constexpr double kLeast = -708.0;  // below, e^x is no normal number
  const double bounded = x > kLeast ? x : kLeast;
  // x = n ln 2 + r with an integer n, |r| <= ln 2 / 2: adding 1.5 * 2^52 rounds to an integer,
  // and leaves it in the lowest bits.
  constexpr double kShift = 0x1.8p52;
  const double shifted = multiply_add(bounded, 0x1.71547652b82fep0, kShift);
  const double n = shifted - kShift;
  // ln 2 in two parts; the first has few enough bits that its product with n is exact.
  const double r =
      multiply_add(n, -0x1.ef35793c7673p-45, multiply_add(n, -0x1.62e42fefa38p-1, bounded));
  // Taylor's series: the next term is below 2^-57.
  double p = 1.0 / 6227020800;
  p = multiply_add(p, r, 1.0 / 479001600);
  p = multiply_add(p, r, 1.0 / 39916800);
  p = multiply_add(p, r, 1.0 / 3628800);
  p = multiply_add(p, r, 1.0 / 362880);
  p = multiply_add(p, r, 1.0 / 40320);
  p = multiply_add(p, r, 1.0 / 5040);
  p = multiply_add(p, r, 1.0 / 720);
  p = multiply_add(p, r, 1.0 / 120);
  p = multiply_add(p, r, 1.0 / 24);
  p = multiply_add(p, r, 1.0 / 6);
  p = multiply_add(p, r, 0.5);
  p = multiply_add(p, r, 1.0);
  p = multiply_add(p, r, 1.0);
  const double power = from_bits((bits_of(shifted) + 1023) << 52);
  return x > kLeast ? p * power : 0.0;
}

inline double weight(float x, Exponent exponent) {
  return exp((static_cast<double>(finite(x)) - exponent.max) * exponent.scale);
}

inline float larger(float a, float b) { return a > b ? a : b; }

}  // namespace

void block_maxima(const float* x, std::int64_t size, float* maxima) {
  for (; size > 0; x += kLogitBlock, size -= kLogitBlock) {
    float lanes[kLanes];
    for (float& lane : lanes) lane = kLowest;
    if (size >= kLogitBlock) {
      for (int i = 0; i < kLogitBlock; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = larger(x[i + lane], lanes[lane]);
      }
      for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
          lanes[lane] = larger(lanes[lane], lanes[lane + half]);
        }
      }
    } else {
      for (std::int64_t i = 0; i < size; ++i) lanes[0] = larger(x[i], lanes[0]);
    }
    *maxima++ = finite(lanes[0]);
  }
}

void weights(const float* x, std::int64_t size, Exponent exponent, double* out) {
  for (std::int64_t i = 0; i < size; ++i) out[i] = weight(x[i], exponent);
}

double weight_sum(const float* x, std::int64_t size, Exponent exponent) {
  double lanes[kLanes] = {};
  for (; size >= kLanes; x += kLanes, size -= kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += weight(x[lane], exponent);
  }
  for (int lane = 0; lane < size; ++lane) lanes[lane] += weight(x[lane], exponent);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace qwell::QWELL_ISA
