#pragma once

#include <cstdint>

namespace qwell {

// Tokens of a block of the cache.
constexpr std::int64_t kBlockTokens = 16;

// Element types of keys and values. An int8 cache has a scale for each key and each value besides:
// an element is its integer times that.
enum class CacheDType { float32, bfloat16, float16, int8 };

}  // namespace qwell
