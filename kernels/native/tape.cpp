#include "tape.h"

namespace qwell {
namespace {

void run_op(Isa, Pool& pool, const AdjustLogitsCall& call) { adjust_logits(pool, call); }
void run_op(Isa isa, Pool& pool, const AttentionCall& call) { attention(isa, pool, call); }
void run_op(Isa, Pool& pool, const EmbeddingCall& call) { embedding(pool, call); }
void run_op(Isa isa, Pool& pool, const LinearCall& call) { linear(isa, pool, call); }
void run_op(Isa isa, Pool& pool, const LogprobsCall& call) { logprobs(isa, pool, call); }
void run_op(Isa isa, Pool& pool, const RmsNormCall& call) { rms_norm(isa, pool, call); }
void run_op(Isa isa, Pool& pool, const RopeCall& call) { rope(isa, pool, call); }
void run_op(Isa isa, Pool& pool, const SampleCall& call) { sample(isa, pool, call); }
void run_op(Isa isa, Pool& pool, const SiluMulCall& call) { silu_mul(isa, pool, call); }

}  // namespace

void run(Isa isa, Pool& pool, const Call& call) {
  std::visit([&](const auto& op) { run_op(isa, pool, op); }, call);
}

void Tape::replay(Isa isa, Pool& pool, std::int64_t tokens, std::int64_t logits) const {
  for (const Step& step : steps_) {
    Call call = step.call;
    std::visit([&](auto& op) { op.rows = step.rows == Rows::tokens ? tokens : logits; }, call);
    run(isa, pool, call);
  }
}

}  // namespace qwell
