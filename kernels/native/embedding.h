#pragma once

#include <cstdint>

#include "packed.h"
#include "pool.h"

namespace qwell {

// Rows of a table of `width` columns. The caller owns every buffer.
struct EmbeddingCall {
  const std::int32_t* ids;  // [rows], each a row of the table
  const void* table;        // in panels if `packed`, else row after row of f32, bf16 or f16
  float* y;                 // [rows, width], out
  std::int64_t rows;
  std::int64_t width;
  WeightFormat format;
  bool packed;
};

// y[i] = table[ids[i]], widened to fp32 exactly. The ids are read when this runs, and trusted.
void embedding(Pool& pool, const EmbeddingCall& call);

}  // namespace qwell
