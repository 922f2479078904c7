#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace qwell {

// Parameters of a row are those of kernels/ops.py. The caller owns every buffer.
struct SampleCall {
  const float* logits;               // [rows, vocabulary]
  const double* temperature;         // [rows]
  const std::int32_t* top_k;         // [rows]
  const double* top_p;               // [rows]
  const double* min_p;               // [rows]
  const double* typical_p;           // [rows]
  const double* uniform;             // [rows]
  std::int32_t* next_ids;            // [rows], out
  std::int64_t rows;
  std::int64_t vocabulary;
};

// Draws next_ids[s] from row s, which alone decides it. Any logits give ids in [0, vocabulary).
void sample(Isa isa, Pool& pool, const SampleCall& call);

}  // namespace qwell
