#pragma once

#include <cstdint>
#include <cstring>

#include "paged_cache.h"
#include "simd/dot.h"
#include "simd/simd.h"

// What scores and mixed values are: chains of products, each link of one feature or key in fp32.
// Of a bfloat16 cache, where the processor multiplies pairs, a link is of two, and queries and
// weights are rounded to bfloat16.
//
//   kLink               features, or keys, of a link
//   kLines              lines of a block that hold them
//   Prepared            elements of keys and values that many rows share
//   Operand             a link of Vec::width keys, or of as many columns of values
//   keys(line), values(line, stride)
//                       from the first line of the link on
//   only(operand, first, second)
//                       with zeros instead of what is not wanted of a link
//   add(sum, operand, factors, link)
//                       `factors` are a row's, of a query or of weights
//   Vec put(row, place, Vec)
//                       Vec::width factors, counted from `place`; returns what they are then
namespace qwell::QWELL_ISA {
namespace {

template <class T>
struct Chain {
  using Prepared = float;
  using Operand = Vec;
  static constexpr int kLink = 1;
  static constexpr int kLines = 1;

  static Operand keys(const T* line) { return load(line); }
  static Operand values(const T* line, std::int64_t) { return load(line); }
  static Vec add(Vec sum, Operand operand, const float* factors, std::int64_t link) {
    return fma(splat(factors[link]), operand, sum);
  }
  static Vec put(float* row, std::int64_t place, Vec factors) {
    store(row + place, factors);
    return factors;
  }
};

#if defined(QWELL_BF16_DOT)
// Of two features of a key, or two values of a column.
struct Pair {
  BFloat16 first;
  BFloat16 second;
};

// A row's factors are pairs too: they take half the floats.
struct PairChain {
  using Prepared = Pair;
  using Operand = Pairs;
  static constexpr int kLink = 2;

  static Vec add(Vec sum, Operand operand, const float* factors, std::int64_t link) {
    std::uint32_t pair;
    std::memcpy(&pair, factors + link, sizeof(pair));
    return dot_pairs(sum, operand, pair);
  }
  static Vec put(float* row, std::int64_t place, Vec factors) {
    return store_rounded(reinterpret_cast<BFloat16*>(row) + place, factors);
  }
};

template <>
struct Chain<BFloat16> : PairChain {
  static constexpr int kLines = 2;
  static Operand keys(const BFloat16* line) { return zip_adjacent(line); }
  static Operand values(const BFloat16* line, std::int64_t stride) {
    return zip(line, line + stride);
  }
};

template <>
struct Chain<Pair> : PairChain {
  static constexpr int kLines = 1;
  static Operand keys(const Pair* line) { return load_pairs(line); }
  static Operand values(const Pair* line, std::int64_t) { return load_pairs(line); }
};
#endif

}  // namespace
}  // namespace qwell::QWELL_ISA
