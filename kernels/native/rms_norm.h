#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"
#include "pool.h"

namespace qwell {

// Rows of `width` elements, contiguous, all of `dtype`; nothing overlaps and nothing need be
// aligned. The caller owns every buffer.
struct RmsNormCall {
  const void* x;         // [rows, width]
  const void* residual;  // [rows, width] or null
  const void* weight;    // [width]
  void* y;               // [rows, width], out
  void* s;               // [rows, width], out; untouched and may be null without a residual
  std::int64_t rows;
  std::int64_t width;
  float eps;
  DType dtype;
};

// s = x + residual, y = s * rsqrt(mean(s^2) + eps) * weight, with the rounding points that
// kernels/ops.py names. A row's bits depend on that row alone and are the same on every
// instruction set. `isa` must be one of runnable_isas().
void rms_norm(Isa isa, Pool& pool, const RmsNormCall& call);

// One implementation per instruction set, each from rms_norm_kernel.cpp.
QWELL_PER_ISA(void rms_norm(const RmsNormCall& call);)

}  // namespace qwell
