#include "logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "logits.h"

namespace qwell {
namespace {

// The `top` most likely ids of a row, in order.
std::vector<std::int32_t> most_likely(const LogitRow& row, std::int64_t top) {
  if (top == 0) return {};
  const Candidates candidates = row.largest(top);
  std::vector<std::size_t> order(candidates.ids.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return candidates.values[a] > candidates.values[b];
  });
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < top; ++i) {
    ids.push_back(candidates.ids[order[static_cast<std::size_t>(i)]]);
  }
  return ids;
}

}  // namespace

void logprobs(Isa isa, Pool& pool, const LogprobsCall& call) {
  std::vector<const float*> logits;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    logits.push_back(call.logits + row * call.vocabulary);
  }
  LogitRows rows(isa, pool, logits, call.vocabulary);
  rows.sum_weights(isa, pool, std::vector<double>(logits.size(), 1.0));
  pool.run(call.rows, [&](std::int64_t i) {
    const LogitRow& row = rows[i];
    const double log_sum = std::log(rows.sum(i));
    const auto logprob = [&](std::int32_t id) {
      return static_cast<float>(static_cast<double>(row.x()[id]) - row.max() - log_sum);
    };
    call.logprobs[i] = logprob(call.ids[i]);
    const std::vector<std::int32_t> top = most_likely(row, call.top);
    std::copy(top.begin(), top.end(), call.top_ids + i * call.top);
    std::transform(top.begin(), top.end(), call.top_logprobs + i * call.top, logprob);
  });
}

}  // namespace qwell
