#pragma once

#include <cstdint>

#include "pool.h"

namespace qwell {

// Parameters of a row are those of kernels/ops.py. The caller owns every buffer.
struct AdjustLogitsCall {
  float* logits;                     // [rows, vocabulary], changed in place
  const std::int32_t* ids;           // [cu_ids[rows]], each in [0, vocabulary), once in a row
  const std::int32_t* counts;        // [cu_ids[rows]]
  const double* biases;              // [cu_ids[rows]]
  const std::int32_t* cu_ids;        // [rows + 1]
  const std::int32_t* newest;        // [rows], below vocabulary
  const double* repetition_penalty;  // [rows]
  const double* presence_penalty;    // [rows]
  const double* frequency_penalty;   // [rows]
  const std::int32_t* only_listed;   // [rows]
  std::int64_t rows;
  std::int64_t vocabulary;
};

// Adjusts the listed logits of every row. The arithmetic is in single precision.
void adjust_logits(Pool& pool, const AdjustLogitsCall& call);

}  // namespace qwell
