// Compiled once per instruction set; QWELL_ISA names the set and the namespace.

#include <cstring>

#include "silu_mul.h"
#include "simd/exp.h"
#include "simd/simd.h"

namespace qwell::QWELL_ISA {
namespace {

Vec silu_mul(Vec gate, Vec up) { return gate / (splat(1.0F) + exp(splat(0.0F) - gate)) * up; }

}  // namespace

void silu_mul(const float* gate, const float* up, float* y, std::int64_t width) {
  const std::int64_t tail = width % Vec::width;
  const std::int64_t whole = width - tail;
  for (std::int64_t i = 0; i < whole; i += Vec::width) {
    store(y + i, silu_mul(load(gate + i), load(up + i)));
  }
  if (tail > 0) {
    const auto bytes = static_cast<std::size_t>(tail) * sizeof(float);
    float tail_gate[Vec::width] = {};
    float tail_up[Vec::width] = {};
    std::memcpy(tail_gate, gate + whole, bytes);
    std::memcpy(tail_up, up + whole, bytes);
    store(tail_gate, silu_mul(load(tail_gate), load(tail_up)));
    std::memcpy(y + whole, tail_gate, bytes);
  }
}

}  // namespace qwell::QWELL_ISA
