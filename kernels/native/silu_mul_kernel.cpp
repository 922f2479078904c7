// Compiled once per instruction set; QWELL_ISA names the set and the namespace.

#include <cstring>

#include "silu_mul.h"
#include "simd/exp.h"
#include "simd/simd.h"

namespace qwell::QWELL_ISA {
namespace {

Vec silu_mul(Vec gate, Vec up) { return gate / (splat(1.0F) + exp(splat(0.0F) - gate)) * up; }

// Fewer elements than a vector has, as the first of one: the bits are the same.
void silu_mul_tail(const float* gate, const float* up, float* y, std::int64_t width) {
  const auto bytes = static_cast<std::size_t>(width) * sizeof(float);
  float gates[Vec::width] = {};
  float ups[Vec::width] = {};
  std::memcpy(gates, gate, bytes);
  std::memcpy(ups, up, bytes);
  store(gates, silu_mul(load(gates), load(ups)));
  std::memcpy(y, gates, bytes);
}

}  // namespace

void silu_mul(const float* gate, const float* up, float* y, std::int64_t width) {
  std::int64_t i = 0;
  for (; i + Vec::width <= width; i += Vec::width) {
    store(y + i, silu_mul(load(gate + i), load(up + i)));
  }
  if (i < width) silu_mul_tail(gate + i, up + i, y + i, width - i);
}

}  // namespace qwell::QWELL_ISA
