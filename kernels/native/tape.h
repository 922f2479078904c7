#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "adjust_logits.h"
#include "attention.h"
#include "embedding.h"
#include "isa.h"
#include "linear.h"
#include "logprobs.h"
#include "pool.h"
#include "rms_norm.h"
#include "rope.h"
#include "sample.h"
#include "silu_mul.h"

namespace qwell {

using Call = std::variant<AdjustLogitsCall, AttentionCall, EmbeddingCall, LinearCall, LogprobsCall,
                          RmsNormCall, RopeCall, SampleCall, SiluMulCall>;

// What the rows of a call are, and so how many a step has of them.
enum class Rows { tokens, logits };

// Runs one op now.
void run(Isa isa, Pool& pool, const Call& call);

// The ops of a forward pass with the addresses they were recorded with, run again by one call.
// Only numbers of rows differ between runs; buffers must hold the rows that were recorded.
class Tape {
 public:
  void append(const Call& call, Rows rows) { steps_.push_back({call, rows}); }
  std::size_t size() const { return steps_.size(); }

  void replay(Isa isa, Pool& pool, std::int64_t tokens, std::int64_t logits) const;

 private:
  struct Step {
    Call call;
    Rows rows;
  };
  std::vector<Step> steps_;
};

}  // namespace qwell
