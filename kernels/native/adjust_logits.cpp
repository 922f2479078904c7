#include "adjust_logits.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace qwell {
namespace {

struct Penalties {
  float repetition;
  float presence;
  float frequency;
};

float adjusted(float logit, std::int32_t count, float bias, const Penalties& penalties) {
  if (count >= 0) {
    logit = logit >= 0 ? logit / penalties.repetition : logit * penalties.repetition;
  }
  if (count > 0) {
    logit -= penalties.frequency * static_cast<float>(count);
    logit -= penalties.presence;
  }
  return logit + bias;
}

void adjust_row(const AdjustLogitsCall& call, std::int64_t row) {
  float* logits = call.logits + row * call.vocabulary;
  const Penalties penalties{.repetition = static_cast<float>(call.repetition_penalty[row]),
                            .presence = static_cast<float>(call.presence_penalty[row]),
                            .frequency = static_cast<float>(call.frequency_penalty[row])};
  const std::int32_t newest = call.newest[row];
  const std::int32_t first = call.cu_ids[row];
  const std::int32_t end = call.cu_ids[row + 1];
  bool newest_listed = false;
  std::vector<float> values;
  for (std::int32_t i = first; i < end; ++i) {
    const bool again = call.ids[i] == newest;
    newest_listed |= again;
    const std::int32_t count = again ? std::max(call.counts[i], 0) + 1 : call.counts[i];
    values.push_back(
        adjusted(logits[call.ids[i]], count, static_cast<float>(call.biases[i]), penalties));
  }
  if (newest >= 0 && !newest_listed) logits[newest] = adjusted(logits[newest], 1, 0, penalties);
  if (call.only_listed[row] != 0) {
    std::fill_n(logits, call.vocabulary, -std::numeric_limits<float>::infinity());
  }
  for (std::int32_t i = first; i < end; ++i) {
    logits[call.ids[i]] = values[static_cast<std::size_t>(i - first)];
  }
}

}  // namespace

void adjust_logits(Pool& pool, const AdjustLogitsCall& call) {
  pool.run(call.rows, [&](std::int64_t row) { adjust_row(call, row); });
}

}  // namespace qwell
