// Compiled once per instruction set; QWELL_ISA names the set and the namespace.

#include <cstring>
#include <type_traits>

#include "paged_cache.h"
#include "rope.h"
#include "simd/simd.h"
#include "simd/sum.h"

namespace qwell::QWELL_ISA {
namespace {

// Lanes of one step of the sum of squares: one order of summation for every instruction set.
constexpr int kSumLanes = 32;

// The first of `count` elements that a vector holds, the others 0.
Vec load_first(const float* from, std::int64_t count) {
  if (count >= Vec::width) return load(from);
  float lanes[Vec::width] = {};
  std::memcpy(lanes, from, static_cast<std::size_t>(count) * sizeof(float));
  return load(lanes);
}

template <class T>
void store_first(T* to, Vec value, std::int64_t count) {
  if (count >= Vec::width) return store(to, value);
  T lanes[Vec::width];
  store(lanes, value);
  std::memcpy(to, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

// A feature of a token lies 16 elements from the next one.
template <class T>
void scatter_first(T* to, Vec value, std::int64_t count) {
  T lanes[Vec::width];
  store(lanes, value);
  for (std::int64_t i = 0; i < Vec::width && i < count; ++i) to[i * kBlockTokens] = lanes[i];
}

Vec inverse_rms(const float* x, std::int64_t head_dim, float eps) {
  Vec squares[kSumLanes / Vec::width];
  for (Vec& partial : squares) partial = splat(0.0F);
  for (std::int64_t i = 0; i < head_dim; i += kSumLanes) {
    for (std::int64_t lane = 0; lane < kSumLanes; lane += Vec::width) {
      if (i + lane >= head_dim) break;
      const Vec value = load_first(x + i + lane, head_dim - i - lane);
      squares[lane / Vec::width] = squares[lane / Vec::width] + value * value;
    }
  }
  const float mean = sum_lanes(squares) / static_cast<float>(head_dim);
  return splat(1.0F / __builtin_sqrtf(mean + eps));
}

// Norms a head, if there is a norm, rotates it and gives it to emit(feature, vector, count), where
// count is how many elements are left.
template <class Emit>
void rotate(const float* x, const float* norm, const float* cos, std::int64_t head_dim, float eps,
            const Emit& emit) {
  const std::int64_t half = head_dim / 2;
  const float* sin = cos + half;
  const Vec scale = norm != nullptr ? inverse_rms(x, head_dim, eps) : splat(1.0F);
  for (std::int64_t i = 0; i < half; i += Vec::width) {
    const std::int64_t count = half - i;
    Vec low = load_first(x + i, count);
    Vec high = load_first(x + half + i, count);
    if (norm != nullptr) {
      low = low * scale * load_first(norm + i, count);
      high = high * scale * load_first(norm + half + i, count);
    }
    const Vec c = load_first(cos + i, count);
    const Vec s = load_first(sin + i, count);
    emit(i, low * c - high * s, count);
    emit(half + i, high * c + low * s, count);
  }
}

// Gives the integers of a key or value to write(feature, vector, count) and returns their scale,
// of which the largest element is 127. `each` hands its elements to an emit as that of rotate.
// Where one is not finite the scale is NaN.
template <class Each, class Write>
float quantise(const Each& each, const Write& write) {
  Vec most = splat(0.0F);
  Vec flaws[1] = {splat(0.0F)};  // NaN in the lane of an element that is not finite
  each([&](std::int64_t, Vec x, std::int64_t) {
    most = max(most, max(x, splat(0.0F) - x));
    flaws[0] = flaws[0] + x * splat(0.0F);
  });
  const float scale = max_lane(most) / 127.0F + sum_lanes(flaws);
  const bool usable = scale > 0.0F;
  each([&](std::int64_t d, Vec x, std::int64_t count) {
    const Vec nearest = max(splat(-127.0F), min(splat(127.0F), x / splat(scale)));
    write(d, usable ? nearest : splat(0.0F), count);
  });
  return scale;
}

template <class T>
void rope_token(const RopeCall& call, std::int64_t token, std::int64_t kv_head) {
  const std::int64_t head_dim = call.head_dim;
  const std::int64_t group = call.num_heads / call.num_kv_heads;
  const float* heads = call.qkv + token * (call.num_heads + 2 * call.num_kv_heads) * head_dim;
  const float* cos = call.cos_sin + call.positions[token] * head_dim;

  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    float* q = call.q + (token * call.num_heads + head) * head_dim;
    rotate(
        heads + head * head_dim, call.q_norm, cos, head_dim, call.eps,
        [&](std::int64_t d, Vec value, std::int64_t count) { store_first(q + d, value, count); });
  }

  const std::int64_t slot = call.slot_mapping[token];
  if (slot < 0) return;
  const std::int64_t block = slot / kBlockTokens * call.num_kv_heads + kv_head;
  const std::int64_t offset = slot % kBlockTokens;
  T* k = static_cast<T*>(call.k_cache) + block * kBlockTokens * head_dim + offset;
  T* v = static_cast<T*>(call.v_cache) + (block * kBlockTokens + offset) * head_dim;
  const auto each_of_key = [&](const auto& emit) {
    rotate(heads + (call.num_heads + kv_head) * head_dim, call.k_norm, cos, head_dim, call.eps,
           emit);
  };
  const auto each_of_value = [&](const auto& emit) {
    const float* values = heads + (call.num_heads + call.num_kv_heads + kv_head) * head_dim;
    for (std::int64_t d = 0; d < head_dim; d += Vec::width) {
      emit(d, load_first(values + d, head_dim - d), head_dim - d);
    }
  };
  const auto write_key = [&](std::int64_t d, Vec x, std::int64_t count) {
    scatter_first(k + d * kBlockTokens, x, count);
  };
  const auto write_value = [&](std::int64_t d, Vec x, std::int64_t count) {
    store_first(v + d, x, count);
  };
  if constexpr (std::is_same_v<T, std::int8_t>) {
    call.k_scales[block * kBlockTokens + offset] = quantise(each_of_key, write_key);
    call.v_scales[block * kBlockTokens + offset] = quantise(each_of_value, write_value);
  } else {
    each_of_key(write_key);
    each_of_value(write_value);
  }
}

template <class T>
void rope_part(const RopeCall& call, const RopePart& part) {
  // Tokens innermost: those of a block share its lines of keys.
  for (std::int64_t kv_head = part.kv_head; kv_head < part.kv_head + part.kv_heads; ++kv_head) {
    for (std::int64_t token = part.token; token < part.token + part.tokens; ++token) {
      rope_token<T>(call, token, kv_head);
    }
  }
}

}  // namespace

void rope(const RopeCall& call, const RopePart& part) {
  switch (call.cache_dtype) {
    case CacheDType::float32:
      return rope_part<float>(call, part);
    case CacheDType::bfloat16:
      return rope_part<BFloat16>(call, part);
    case CacheDType::float16:
      return rope_part<Float16>(call, part);
    case CacheDType::int8:
      return rope_part<std::int8_t>(call, part);
  }
}

}  // namespace qwell::QWELL_ISA
