#pragma once

#include <cstdint>
#include <type_traits>

#include "attention.h"
#include "attention_chain.h"
#include "simd/exp.h"
#include "simd/simd.h"
#include "simd/sum.h"
#include "unroll.h"

// A step of attention: the scores, weights and mixed values of several rows over 64 keys.
namespace qwell::QWELL_ISA {
namespace {

constexpr int kStepBlocks = 4;
constexpr int kStepKeys = kStepBlocks * static_cast<int>(kBlockTokens);
// Registers of a line of keys.
constexpr int kLine = static_cast<int>(kBlockTokens) / Vec::width;

// Rows that are taken at a time, the most and of many; and registers of columns, so many that a
// quarter of all registers is left for operands.
constexpr int kMostRows = 8;
constexpr int kManyRows = 6;
constexpr int kernel_columns(int rows) {
  int columns = kStepKeys / Vec::width;
  while (columns * rows > kVectorRegisters * 3 / 4) columns /= 2;
  return columns;
}

// Where the blocks of a step are.
template <class T>
struct Blocks {
  const T* keys[kStepBlocks];
  const T* values[kStepBlocks];
  const float* key_scales[kStepBlocks];  // null for a cache without scales
  const float* value_scales[kStepBlocks];
};

template <class T>
struct Step {
  Blocks<T> now;
  Blocks<T> next;             // of a later step, fetched meanwhile
  std::int64_t value_stride;  // from one token's values to the next one's
};

// Asks for a line of memory where an element starts one. Into the second level of cache: more
// requests may be under way there than to the first. Inlined, as GCC 12 drops calls of a function
// that does nothing else.
template <class T>
[[gnu::always_inline]] inline void prefetch(const T* from, std::int64_t element) {
  constexpr int kSecondLevel = 2;
  if (element * static_cast<std::int64_t>(sizeof(T)) % 64 == 0) {
    __builtin_prefetch(from + element, 0, kSecondLevel);
  }
}

// Asks for what a step's scores and weights are multiplied by.
template <class T>
void prefetch_scales(const Blocks<T>& blocks) {
  if (blocks.key_scales[0] == nullptr) return;
  unroll<kStepBlocks>([&](auto b) QWELL_INLINE {
    prefetch(blocks.key_scales[b], 0);
    prefetch(blocks.value_scales[b], 0);
  });
}

// Keys of a step, from first to before last.
struct Range {
  std::int64_t first;
  std::int64_t last;
};

// scores [Rows, 64] of q [Rows, width], for Columns registers of keys from `key` on.
template <int Rows, int Columns, class T>
void score_columns(const float* q, const Step<T>& step, std::int64_t head_dim, std::int64_t width,
                   int key, float* scores) {
  const T* line[Columns];
  Vec sums[Rows][Columns];
  unroll<Columns>([&](auto c) QWELL_INLINE {
    const int lane = key + c * Vec::width;
    line[c] = step.now.keys[lane / kBlockTokens] + lane % kBlockTokens;
    unroll<Rows>([&](auto r) QWELL_INLINE { sums[r][c] = splat(0.0F); });
  });
  // Meanwhile as many blocks of values are fetched as of keys are used, one after the other: lines
  // of several in turns take a sixth more time.
  constexpr int kLanes = Columns * Vec::width;
  constexpr int kBlocks = kLanes > kBlockTokens ? kLanes / static_cast<int>(kBlockTokens) : 1;
  const bool fetches = key % kBlockTokens == 0;
  constexpr std::int64_t kLineElements = Chain<T>::kLines * kBlockTokens;
  const std::int64_t links = head_dim / Chain<T>::kLink;
  for (int block = 0; block < kBlocks; ++block) {
    const T* fetched = step.next.values[key / kBlockTokens + block];
    for (std::int64_t link = links * block / kBlocks; link < links * (block + 1) / kBlocks; ++link) {
      typename Chain<T>::Operand keys[Columns];
      unroll<Columns>([&](auto c) QWELL_INLINE {
        keys[c] = Chain<T>::keys(line[c] + link * kLineElements);
      });
      if (fetches) {
        unroll<kBlocks>([&](auto b) QWELL_INLINE { prefetch(fetched, b * kLineElements); });
        fetched += kBlocks * kLineElements;
      }
      unroll<Rows>([&](auto r) QWELL_INLINE {
        unroll<Columns>([&](auto c) QWELL_INLINE {
          sums[r][c] = Chain<T>::add(sums[r][c], keys[c], q + r * width, link);
        });
      });
    }
  }
  unroll<Rows>([&](auto r) QWELL_INLINE {
    unroll<Columns>([&](auto c) QWELL_INLINE {
      store(scores + r * kStepKeys + key + c * Vec::width, sums[r][c]);
    });
  });
}

// sums [Rows, width] += weights [Rows, 64] times values, over the keys of a range.
template <int Rows, int Columns, class T>
void mix_columns(const float* weights, const Step<T>& step, Range keys, std::int64_t column,
                 float* sums, std::int64_t width) {
  Vec mixed[Rows][Columns];
  unroll<Rows>([&](auto r) QWELL_INLINE {
    unroll<Columns>([&](auto c) QWELL_INLINE {
      mixed[r][c] = load(sums + r * width + column + c * Vec::width);
    });
  });
  constexpr int kLink = Chain<T>::kLink;
  for (std::int64_t link = keys.first / kLink; link * kLink < keys.last; ++link) {
    const std::int64_t key = link * kLink;
    const std::int64_t block = key / kBlockTokens;
    const std::int64_t line = key % kBlockTokens / kLink * Chain<T>::kLines;
    typename Chain<T>::Operand values[Columns];
    const T* used = step.now.values[block] + line * step.value_stride + column;
    unroll<Columns>([&](auto c) QWELL_INLINE {
      values[c] = Chain<T>::values(used + c * Vec::width, step.value_stride);
    });
    const T* fetched =
        step.next.keys[block] + line * step.value_stride + column * Chain<T>::kLines;
    unroll<Columns * Chain<T>::kLines>(
        [&](auto i) QWELL_INLINE { prefetch(fetched, i * Vec::width); });
    if constexpr (kLink > 1) {
      const bool first = key >= keys.first;
      const bool second = key + 1 < keys.last;
      if (!first || !second) {
        unroll<Columns>([&](auto c) QWELL_INLINE { values[c] = only(values[c], first, second); });
      }
    }
    unroll<Rows>([&](auto r) QWELL_INLINE {
      unroll<Columns>([&](auto c) QWELL_INLINE {
        mixed[r][c] = Chain<T>::add(mixed[r][c], values[c], weights + r * kStepKeys, link);
      });
    });
  }
  unroll<Rows>([&](auto r) QWELL_INLINE {
    unroll<Columns>([&](auto c) QWELL_INLINE {
      store(sums + r * width + column + c * Vec::width, mixed[r][c]);
    });
  });
}

template <int Rows, class T>
void score_rows(const float* q, const Step<T>& step, std::int64_t head_dim, std::int64_t width,
                float* scores) {
  constexpr int kColumns = kernel_columns(Rows);
  for (int key = 0; key < kStepKeys; key += kColumns * Vec::width) {
    score_columns<Rows, kColumns>(q, step, head_dim, width, key, scores);
  }
}

template <int Rows, class T>
void mix_rows(const float* weights, const Step<T>& step, Range keys, float* sums,
              std::int64_t width) {
  constexpr int kColumns = kernel_columns(Rows);
  std::int64_t column = 0;
  for (; column + kColumns * Vec::width <= width; column += kColumns * Vec::width) {
    mix_columns<Rows, kColumns>(weights, step, keys, column, sums, width);
  }
  for (; column < width; column += Vec::width) {
    mix_columns<Rows, 1>(weights, step, keys, column, sums, width);
  }
}

// Calls body(rows at a time, row) until all rows are done: Most at a time, and Many of more.
template <int Most, int Many, class Body>
void by_rows(std::int64_t rows, const Body& body) {
  std::int64_t row = 0;
  for (; row + Most < rows; row += Many) body(std::integral_constant<int, Many>{}, row);
  unroll<Most>([&](auto i) QWELL_INLINE {
    if (rows - row == i + 1) body(std::integral_constant<int, i + 1>{}, row);
  });
}

// One row's scores [64] of a step become weights relative to the largest score so far, times the
// scales of their values; what was summed before is scaled to that. Keys outside the range count
// for nothing, whatever their scores are, and have no weight.
template <class T>
void weigh(float* scores, const Blocks<T>& blocks, Range keys, float* most, float* totals,
           float* sums, std::int64_t width) {
  for (std::int64_t key = 0; key < keys.first; ++key) scores[key] = -__builtin_inff();
  for (std::int64_t key = keys.last; key < kStepKeys; ++key) scores[key] = -__builtin_inff();

  Vec larger = load(scores);
  for (int key = Vec::width; key < kStepKeys; key += Vec::width) {
    larger = max(larger, load(scores + key));
  }
  const float step_most = max_lane(larger);
  if (step_most > *most) {
    const Vec factor = exp(splat(*most) - splat(step_most));
    *most = step_most;
    for (int lane = 0; lane < kBlockTokens; lane += Vec::width) {
      store(totals + lane, load(totals + lane) * factor);
    }
    for (std::int64_t d = 0; d < width; d += Vec::width) store(sums + d, load(sums + d) * factor);
  }

  const Vec shift = splat(*most);
  Vec weights[kStepBlocks][kLine];
  for (int block = 0; block < kStepBlocks; ++block) {
    for (int line = 0; line < kLine; ++line) {
      const int place = block * static_cast<int>(kBlockTokens) + line * Vec::width;
      const Vec weight = exp(load(scores + place) - shift);
      const float* scales = blocks.value_scales[block];
      if (scales != nullptr) {
        weights[block][line] = weight;
        store(scores + place, weight * load(scales + line * Vec::width));
      } else {
        weights[block][line] = Chain<T>::put(scores, place, weight);
      }
    }
  }
  for (int line = 0; line < kLine; ++line) {
    const Vec step_total =
        (weights[0][line] + weights[1][line]) + (weights[2][line] + weights[3][line]);
    store(totals + line * Vec::width, load(totals + line * Vec::width) + step_total);
  }
}

}  // namespace
}  // namespace qwell::QWELL_ISA
