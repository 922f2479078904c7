#pragma once

#include <cstdint>

#include "isa.h"
#include "packed.h"
#include "pool.h"

namespace qwell {

// x and y are contiguous, y overlaps nothing and nothing need be aligned. The caller owns every
// buffer.
struct LinearCall {
  const float* x;      // [rows, columns]
  const void* weight;  // packed, [outputs, columns]
  const float* bias;   // [outputs] or null
  float* y;            // [rows, outputs], out
  std::int64_t rows;
  std::int64_t columns;  // a multiple of kGroup in formats with scales
  std::int64_t outputs;
  WeightFormat format;
};

// y = x W^T + bias, one chain of fused multiply-adds in fp32 for each element of y, its columns in
// order, beginning with 0; then the bias is added. So the bits of a row of y depend on nothing but
// that row of x.
//
// Links of the chain: a column in f32 and f16, and in bf16 too, where the processor has no dot
// product of bfloat16; else x is rounded to bfloat16 and a link is a pair of columns. In int8 and
// int4 x is quantised (quantize_activations in kernels/int_groups.py) and a link is a group of 32
// columns: the exact sum of products of integers, times the product of the two scales.
//
// `isa` must be one of runnable_isas().
void linear(Isa isa, Pool& pool, const LinearCall& call);

// How a format's kernel wants x: tiles of `tokens` rows at most, `row_bytes` for each row.
struct LinearInput {
  int tokens;
  std::int64_t row_bytes;
};

// Rows of the next tile where so many are left: there are kernels for these numbers of rows.
static constexpr int next_tile(std::int64_t left, int most) {
  for (const int tokens : {12, 8, 6, 4, 2}) {
    if (tokens <= most && tokens <= left) return tokens;
  }
  return 1;
}

// From linear_kernel.cpp: `rows` rows of x from `first` on, as tiles one after the other at `out`;
// and all rows of y in some panels of outputs, from all tiles at `input`.
QWELL_PER_ISA(LinearInput linear_input(const LinearCall& call);
              void arrange_rows(const LinearCall& call, std::int64_t first, std::int64_t rows,
                                std::uint8_t* out);
              void multiply_panels(const LinearCall& call, std::int64_t first_panel,
                                   std::int64_t panels, const std::uint8_t* input);)

}  // namespace qwell
