#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace qwell {

// The caller owns every buffer.
struct LogprobsCall {
  const float* logits;      // [rows, vocabulary]
  const std::int32_t* ids;  // [rows], each in [0, vocabulary)
  float* logprobs;          // [rows], out
  std::int32_t* top_ids;    // [rows, top], out
  float* top_logprobs;      // [rows, top], out
  std::int64_t rows;
  std::int64_t vocabulary;
  std::int64_t top;
};

// log_softmax of each row at its id and at its `top` most likely ids, most likely first, of
// equally likely ones the lower. In double precision, rounded once.
void logprobs(Isa isa, Pool& pool, const LogprobsCall& call);

}  // namespace qwell
