#pragma once

#include <cstdint>

#include "isa.h"
#include "paged_cache.h"
#include "pool.h"

namespace qwell {

// Causal grouped-query attention over the paged cache; the meaning is in kernels/ops.py. Keys lie
// in a block with their features as lines, so that a line holds one feature of all its tokens.
//
// A sequence is a line of cu_seqlens_q, seq_lens and block_table. They are read when the call
// runs: the sequences of a step are those before the first whose cu_seqlens_q is `rows`, so that
// buffers with room for more sequences are padded with `rows`. The caller owns every buffer.
struct AttentionCall {
  const float* q;                    // [rows, num_heads, head_dim]
  const void* k_cache;               // [blocks, num_kv_heads, head_dim, 16]
  const void* v_cache;               // [blocks, num_kv_heads, 16, head_dim]
  const float* k_scales;             // [blocks, num_kv_heads, 16] of an int8 cache, or null
  const float* v_scales;             // like k_scales
  const std::int32_t* block_table;   // [max_seqs, table_stride]
  const std::int32_t* cu_seqlens_q;  // [max_seqs + 1]
  const std::int32_t* seq_lens;      // [max_seqs]
  float* out;                        // [rows, num_heads, head_dim]
  std::int64_t rows;
  std::int64_t max_seqs;
  std::int64_t table_stride;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
  std::int64_t window;  // 0 for none
  float scale;
  CacheDType cache_dtype;
};

// The bits of a token's head depend on its query and its keys and values alone: neither on other
// tokens, nor on how queries share tasks, nor on threads. The same on every instruction set that
// fuses multiplication and addition, but for a bfloat16 cache where it has dot products of pairs:
// there queries and weights are rounded to bfloat16. `isa` must be one of runnable_isas().
void attention(Isa isa, Pool& pool, const AttentionCall& call);

// Keys that are attended in one go; results of such splits, counted from key 0, are merged.
constexpr std::int64_t kSplitKeys = 512;

// Consecutive queries of a sequence, with the heads of consecutive key/value heads: a matrix for
// each of these, whose rows are the queries with their heads, heads innermost.
struct AttentionTile {
  std::int64_t row;  // of the first query in q
  std::int64_t queries;
  std::int64_t position;  // of the first query in its sequence
  std::int64_t kv_head;   // the first one
  std::int64_t kv_heads;
  const std::int32_t* blocks;  // line of the block table
};

// head_dim, padded to whole vectors of any instruction set.
static constexpr std::int64_t attention_width(std::int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Floats of the result of a split, and of the space that computing one takes.
std::int64_t attention_partial_floats(const AttentionCall& call, const AttentionTile& tile);
std::int64_t attention_scratch_floats(const AttentionCall& call, const AttentionTile& tile);

// One implementation per instruction set, each from attention_kernel.cpp:
// the softmax of one split, not yet divided by its sum; the union of two splits, the later one
// given second; and the division.
QWELL_PER_ISA(void attention_split(const AttentionCall& call, const AttentionTile& tile,
                                   std::int64_t split, float* scratch, float* partial);
              void attention_merge(const AttentionCall& call, const AttentionTile& tile,
                                   float* into, const float* later);
              void attention_finish(const AttentionCall& call, const AttentionTile& tile,
                                    const float* partial);)

}  // namespace qwell
