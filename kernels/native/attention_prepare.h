#pragma once

#include <cstdint>
#include <type_traits>

#include "attention_chain.h"
#include "widen.h"

// Keys and values as they are computed with where they are not read from the cache each time.
namespace qwell::QWELL_ISA {
namespace {

// What a step computes with where many rows share it, or where lines are no whole vectors.
template <class T>
using Prepared =
    std::conditional_t<std::is_same_v<T, std::int8_t>, std::int8_t, typename Chain<T>::Prepared>;

// Lines of `count` elements, widened and padded with zeros to lines of `stride`.
template <class T, class To>
void prepare_lines(const T* from, std::int64_t lines, std::int64_t count, To* to,
                   std::int64_t stride) {
  for (std::int64_t line = 0; line < lines; ++line, from += count, to += stride) {
    std::int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) store(to + i, load(from + i));
    for (; i < count; ++i) to[i] = static_cast<To>(widen(from[i]));
    for (; i < stride; ++i) to[i] = To{};
  }
}

// Keys of a block: all of its lines as one.
template <class T, class To>
void prepare_keys(const T* from, std::int64_t head_dim, To* to, std::int64_t size) {
  prepare_lines(from, 1, head_dim * kBlockTokens, to, size);
}

#if defined(QWELL_BF16_DOT)
// Two lines become one of pairs.
void prepare_lines(const BFloat16* from, std::int64_t lines, std::int64_t count, Pair* to,
                   std::int64_t stride) {
  for (std::int64_t line = 0; line < lines; line += 2, from += 2 * count, to += stride) {
    std::int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) {
      store_pairs(to + i, zip(from + i, from + count + i));
    }
    for (; i < count; ++i) to[i] = {from[i], from[count + i]};
    for (; i < stride; ++i) to[i] = Pair{};
  }
}

void prepare_keys(const BFloat16* from, std::int64_t head_dim, Pair* to, std::int64_t) {
  prepare_lines(from, head_dim, kBlockTokens, to, kBlockTokens);
}
#endif

}  // namespace
}  // namespace qwell::QWELL_ISA
