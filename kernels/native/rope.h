#pragma once

#include <cstdint>

#include "isa.h"
#include "paged_cache.h"
#include "pool.h"

namespace qwell {

// Splits qkv, norms and rotates q and k, and writes k and v into the cache, whose layout
// attention.h says; the meaning is in kernels/ops.py. Nothing need be aligned, and the caller owns
// every buffer.
struct RopeCall {
  const float* qkv;                  // [rows, (num_heads + 2 num_kv_heads) head_dim]
  const std::int32_t* positions;     // [rows]
  const float* cos_sin;              // [max_positions, head_dim]
  const float* q_norm;               // [head_dim] or null
  const float* k_norm;               // [head_dim] or null
  const std::int32_t* slot_mapping;  // [rows], -1 for nowhere
  void* k_cache;                     // [blocks, num_kv_heads, head_dim, 16]
  void* v_cache;                     // [blocks, num_kv_heads, 16, head_dim]
  float* k_scales;                   // [blocks, num_kv_heads, 16] of an int8 cache, or null
  float* v_scales;                   // like k_scales
  float* q;                          // [rows, num_heads, head_dim], out
  std::int64_t rows;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;  // even
  float eps;
  CacheDType cache_dtype;
};

// A token's bits depend on that token alone, and are the same on every instruction set. `isa` must
// be one of runnable_isas().
void rope(Isa isa, Pool& pool, const RopeCall& call);

// Some tokens, with the query heads that some key/value heads serve.
struct RopePart {
  std::int64_t token;
  std::int64_t tokens;
  std::int64_t kv_head;
  std::int64_t kv_heads;
};

// One implementation per instruction set, each from rope_kernel.cpp.
QWELL_PER_ISA(void rope(const RopeCall& call, const RopePart& part);)

}  // namespace qwell
