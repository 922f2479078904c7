#include "rope.h"

#include <algorithm>

#include "paged_cache.h"

namespace qwell {
namespace {

// Below this a thread takes longer to wake than to compute.
constexpr std::int64_t kTaskElements = 8192;

}  // namespace

void rope(Isa isa, Pool& pool, const RopeCall& call) {
  const auto kernel = QWELL_KERNEL(isa, rope);
  // Tokens of a block share lines of the cache, key/value heads do not: tasks are as many tokens
  // as a block has, and small by having few heads.
  const std::int64_t elements =
      std::min(call.rows, kBlockTokens) * (call.num_heads / call.num_kv_heads + 2) * call.head_dim;
  const std::int64_t task_heads = std::clamp<std::int64_t>(
      kTaskElements / std::max<std::int64_t>(elements, 1), 1, call.num_kv_heads);
  const std::int64_t head_tasks = (call.num_kv_heads + task_heads - 1) / task_heads;
  const std::int64_t token_tasks = (call.rows + kBlockTokens - 1) / kBlockTokens;
  pool.run(token_tasks * head_tasks, [&](std::int64_t i) {
    RopePart part{.token = i / head_tasks * kBlockTokens,
                  .tokens = kBlockTokens,
                  .kv_head = i % head_tasks * task_heads,
                  .kv_heads = task_heads};
    part.tokens = std::min(part.tokens, call.rows - part.token);
    part.kv_heads = std::min(part.kv_heads, call.num_kv_heads - part.kv_head);
    kernel(call, part);
  });
}

}  // namespace qwell
