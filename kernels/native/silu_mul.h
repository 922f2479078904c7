#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace qwell {

// The caller owns every buffer; nothing overlaps and nothing need be aligned.
struct SiluMulCall {
  const float* gate_up;  // [rows, 2 * width], gate | up
  float* y;              // [rows, width], out
  std::int64_t rows;
  std::int64_t width;
};

// y = gate / (1 + e^-gate) * up. The bits of an element depend on its gate and up alone. `isa`
// must be one of runnable_isas().
void silu_mul(Isa isa, Pool& pool, const SiluMulCall& call);

// `width` elements of one row. One implementation per instruction set, each from
// silu_mul_kernel.cpp.
QWELL_PER_ISA(void silu_mul(const float* gate, const float* up, float* y, std::int64_t width);)

}  // namespace qwell
