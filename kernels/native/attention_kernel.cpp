// Compiled once per instruction set; QWELL_ISA names the set and the namespace.
//
// Keys are taken in steps of 64, counted from key 0. Whatever rows share a tile, a row goes through
// the same operations in the same order: a score is one chain over the features, an output one
// chain over the row's keys, and maxima and sums are per row and step. Of an int8 cache scores are
// sums of integers, and so is what a step adds to an output.

#include <cstring>

#include "attention.h"
#include "attention_int8.h"
#include "attention_prepare.h"
#include "attention_step.h"

namespace qwell::QWELL_ISA {
namespace {

std::int64_t min(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t max(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
std::int64_t clamp_to_step(std::int64_t key) { return max(0, min(key, kStepKeys)); }

// Results of a split: for each row a weighted sum of values, the largest score and the sum of the
// weights, which is 0 if the row sees no key of the split.
template <class Float>
struct Partial {
  Float* sums;   // [rows, attention_width]
  Float* most;   // [rows]
  Float* total;  // [rows]

  Partial(Float* data, std::int64_t rows, std::int64_t width)
      : sums(data), most(data + rows * width), total(most + rows) {}
  // From a row on.
  Partial(const Partial& all, std::int64_t row, std::int64_t width)
      : sums(all.sums + row * width), most(all.most + row), total(all.total + row) {}
};

// Of all its heads.
std::int64_t rows_of(const AttentionCall& call, const AttentionTile& tile) {
  return tile.kv_heads * tile.queries * (call.num_heads / call.num_kv_heads);
}

// One of the key/value heads of a tile, and the space to walk over its keys. The heads share what
// is used within a step.
struct Walk {
  const AttentionCall& call;
  const AttentionTile& tile;
  const std::int64_t kv_head;
  const std::int64_t group;  // heads of a key/value head
  const std::int64_t rows;
  const std::int64_t width;

  float* const scores;            // [rows, 64]
  float* const keys;              // [4, width, 16]
  float* const values;            // [4, 16, width]
  std::uint8_t* const weights;    // [rows, 64] numbers, of an int8 cache
  RowScale* const weight_scales;  // [rows]
  // The rest is the head's own.
  float* const totals;            // [rows, 16]
  float* const q;                 // [rows, width], scaled and padded with zeros
  std::uint8_t* const q_numbers;  // [rows, width], of an int8 cache
  RowScale* const q_scales;       // [rows]

  Walk(const AttentionCall& of, const AttentionTile& over, float* scratch, std::int64_t head)
      : call(of),
        tile(over),
        kv_head(over.kv_head + head),
        group(of.num_heads / of.num_kv_heads),
        rows(over.queries * group),
        width(attention_width(of.head_dim)),
        scores(scratch),
        keys(scores + rows * kStepKeys),
        values(keys + kStepKeys * width),
        weights(reinterpret_cast<std::uint8_t*>(values + kStepKeys * width)),
        weight_scales(reinterpret_cast<RowScale*>(weights + rows * kStepKeys * kNumberBytes)),
        totals(reinterpret_cast<float*>(weight_scales + rows) +
               head * rows * (kBlockTokens + width + width / 2 + 2)),
        q(totals + rows * kBlockTokens),
        q_numbers(reinterpret_cast<std::uint8_t*>(q + rows * width)),
        q_scales(reinterpret_cast<RowScale*>(q_numbers + rows * width * kNumberBytes)) {}

  std::int64_t oldest_visible(std::int64_t query) const {
    return call.window > 0 ? max(0, tile.position + query - call.window + 1) : 0;
  }

  // What a query sees of the step that starts at a key.
  Range visible(std::int64_t query, std::int64_t start) const {
    return {clamp_to_step(oldest_visible(query) - start),
            clamp_to_step(tile.position + query + 1 - start)};
  }
};

template <class T>
void load_queries(const Walk& walk) {
  const std::int64_t head_dim = walk.call.head_dim;
  for (std::int64_t row = 0; row < walk.rows; ++row) {
    const std::int64_t token = walk.tile.row + row / walk.group;
    const std::int64_t head = walk.kv_head * walk.group + row % walk.group;
    const float* from = walk.call.q + (token * walk.call.num_heads + head) * head_dim;
    float* to = walk.q + row * walk.width;
    for (std::int64_t d = 0; d < head_dim; ++d) to[d] = from[d] * walk.call.scale;
    for (std::int64_t d = head_dim; d < walk.width; ++d) to[d] = 0.0F;
    if constexpr (std::is_same_v<T, std::int8_t>) {
      std::uint8_t* numbers = walk.q_numbers + row * walk.width * kNumberBytes;
      walk.q_scales[row] = to_numbers(to, walk.width, numbers);
    } else if constexpr (Chain<T>::kLink > 1) {
      for (std::int64_t d = 0; d < walk.width; d += Vec::width) Chain<T>::put(to, d, load(to + d));
    }
  }
}

// Which blocks the step that starts at a key consists of, counted from there: the first visible
// one stands for those without visible keys, which need not exist; what comes of them is not used.
struct Sources {
  std::int64_t block[kStepBlocks];

  Sources(const Walk& walk, std::int64_t start) {
    const std::int64_t first = walk.visible(0, start).first / kBlockTokens;
    const std::int64_t last = walk.visible(walk.tile.queries - 1, start).last;
    for (std::int64_t b = 0; b < kStepBlocks; ++b) {
      block[b] = b >= first && b * kBlockTokens < last ? b : first;
    }
  }
};

template <class T>
Blocks<T> find_blocks(const Walk& walk, std::int64_t start, const Sources& sources) {
  const std::int64_t block_size = kBlockTokens * walk.call.head_dim;
  Blocks<T> blocks;
  for (int b = 0; b < kStepBlocks; ++b) {
    const std::int64_t block = walk.tile.blocks[start / kBlockTokens + sources.block[b]];
    const std::int64_t offset = (block * walk.call.num_kv_heads + walk.kv_head) * block_size;
    blocks.keys[b] = static_cast<const T*>(walk.call.k_cache) + offset;
    blocks.values[b] = static_cast<const T*>(walk.call.v_cache) + offset;
    const bool scaled = std::is_same_v<T, std::int8_t>;
    const std::int64_t scales = offset / walk.call.head_dim;
    blocks.key_scales[b] = scaled ? walk.call.k_scales + scales : nullptr;
    blocks.value_scales[b] = scaled ? walk.call.v_scales + scales : nullptr;
  }
  return blocks;
}

template <class T>
Blocks<Prepared<T>> prepare_blocks(const Walk& walk, const Blocks<T>& blocks,
                                   const Sources& sources) {
  const std::int64_t head_dim = walk.call.head_dim;
  const std::int64_t block_size = kBlockTokens * walk.width;
  Blocks<Prepared<T>> prepared;
  for (int b = 0; b < kStepBlocks; ++b) {
    auto* keys = reinterpret_cast<Prepared<T>*>(walk.keys) + sources.block[b] * block_size;
    auto* values = reinterpret_cast<Prepared<T>*>(walk.values) + sources.block[b] * block_size;
    prepared.keys[b] = keys;
    prepared.values[b] = values;
    prepared.key_scales[b] = blocks.key_scales[b];
    prepared.value_scales[b] = blocks.value_scales[b];
    if (sources.block[b] != b) continue;
    prepare_keys(blocks.keys[b], head_dim, keys, block_size);
    prepare_lines(blocks.values[b], kBlockTokens, head_dim, values, walk.width);
  }
  return prepared;
}

template <class T>
void mix(const Walk& walk, const Step<T>& step, Range keys, std::int64_t first_row,
         std::int64_t rows, float* sums) {
  if (keys.first >= keys.last) return;
  by_rows<kMostRows, kManyRows>(rows, [&](auto count, std::int64_t offset) {
    const std::int64_t row = first_row + offset;
    mix_rows<count>(walk.scores + row * kStepKeys, step, keys, sums + row * walk.width, walk.width);
  });
}

template <class T>
void attend(const Walk& walk, const Step<T>& step, std::int64_t start,
            const Partial<float>& partial) {
  by_rows<kMostRows, kManyRows>(walk.rows, [&](auto count, std::int64_t row) {
    score_rows<count>(walk.q + row * walk.width, step, walk.call.head_dim, walk.width,
                      walk.scores + row * kStepKeys);
  });
  for (std::int64_t row = 0; row < walk.rows; ++row) {
    const Range keys = walk.visible(row / walk.group, start);
    if (keys.first >= keys.last) continue;
    weigh(walk.scores + row * kStepKeys, step.now, keys, partial.most + row,
          walk.totals + row * kBlockTokens, partial.sums + row * walk.width, walk.width);
  }

  // What all queries see is mixed for the whole tile, what only some see query by query. A row
  // takes its keys in ascending order and no other key, not even with weight 0: that would make
  // NaN of what a later token's infinite value is. Nor are a link's keys taken apart for others.
  constexpr int kLink = Chain<T>::kLink;
  Range common{walk.visible(walk.tile.queries - 1, start).first, walk.visible(0, start).last};
  common.first = (common.first + kLink - 1) / kLink * kLink;
  common.last = max(common.first, common.last / kLink * kLink);
  for (std::int64_t query = 0; query < walk.tile.queries; ++query) {
    const Range own = walk.visible(query, start);
    mix(walk, step, {own.first, min(own.last, common.first)}, query * walk.group, walk.group,
        partial.sums);
  }
  mix(walk, step, common, 0, walk.rows, partial.sums);
  for (std::int64_t query = 0; query < walk.tile.queries; ++query) {
    const Range own = walk.visible(query, start);
    mix(walk, step, {max(own.first, common.last), own.last}, query * walk.group, walk.group,
        partial.sums);
  }
}

// Steps are mixed as a whole: what a row does not see has weight 0, and integers no NaN.
void attend(const Walk& walk, const Step<std::int8_t>& step, std::int64_t start,
            const Partial<float>& partial) {
  by_rows<kIntRows, kIntRows>(walk.rows, [&](auto count, std::int64_t row) {
    score_numbers<count>(walk.q_numbers + row * walk.width * kNumberBytes, walk.q_scales + row,
                         step, walk.width, walk.scores + row * kStepKeys);
  });
  // The rows that see keys of the step follow one another.
  std::int64_t first = walk.rows;
  std::int64_t last = 0;
  for (std::int64_t row = 0; row < walk.rows; ++row) {
    const Range keys = walk.visible(row / walk.group, start);
    if (keys.first >= keys.last) continue;
    first = min(first, row);
    last = row + 1;
    float* scores = walk.scores + row * kStepKeys;
    weigh(scores, step.now, keys, partial.most + row, walk.totals + row * kBlockTokens,
          partial.sums + row * walk.width, walk.width);
    // The scales of what is not visible may be NaN.
    for (std::int64_t key = 0; key < keys.first; ++key) scores[key] = 0.0F;
    for (std::int64_t key = keys.last; key < kStepKeys; ++key) scores[key] = 0.0F;
    walk.weight_scales[row] =
        to_numbers(scores, kStepKeys, walk.weights + row * kStepKeys * kNumberBytes);
  }
  by_rows<kIntRows, kIntRows>(last - first, [&](auto count, std::int64_t offset) {
    const std::int64_t row = first + offset;
    mix_numbers<count>(walk.weights + row * kStepKeys * kNumberBytes, walk.weight_scales + row,
                       step, partial.sums + row * walk.width, walk.width);
  });
}

template <class T>
void begin(const Walk& walk, const Partial<float>& partial) {
  load_queries<T>(walk);
  for (std::int64_t i = 0; i < walk.rows * walk.width; ++i) partial.sums[i] = 0.0F;
  for (std::int64_t i = 0; i < walk.rows * kBlockTokens; ++i) walk.totals[i] = 0.0F;
  for (std::int64_t row = 0; row < walk.rows; ++row) partial.most[row] = -__builtin_inff();
}

void end(const Walk& walk, const Partial<float>& partial) {
  for (std::int64_t row = 0; row < walk.rows; ++row) {
    Vec lanes[kLine];
    for (int line = 0; line < kLine; ++line) {
      lanes[line] = load(walk.totals + row * kBlockTokens + line * Vec::width);
    }
    partial.total[row] = sum_lanes(lanes);
  }
}

// How many heads ahead of what is attended keys and values are fetched. One thread, 2048 deep: with
// one in place of two an int8 cache takes a quarter more time, with six a seventh.
constexpr std::int64_t kHeadsAhead = 2;

// Head by head within a step: the blocks of heads side by side are one stretch of memory.
template <class T>
void walk_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t split,
                float* scratch, const Partial<float>& partial) {
  const auto of_head = [&](std::int64_t head) { return Walk(call, tile, scratch, head); };
  const Walk first = of_head(0);
  const auto results = [&](std::int64_t head) {
    return Partial<float>(partial, head * first.rows, first.width);
  };
  for (std::int64_t head = 0; head < tile.kv_heads; ++head) {
    begin<T>(of_head(head), results(head));
  }

  const bool padded = first.width != call.head_dim;
  const bool direct = !padded && (std::is_same_v<T, Prepared<T>> || first.rows <= kMostRows);
  const std::int64_t oldest = first.oldest_visible(0) / kStepKeys * kStepKeys;
  const std::int64_t end_key = min((split + 1) * kSplitKeys, tile.position + tile.queries);
  for (std::int64_t start = max(split * kSplitKeys, oldest); start < end_key; start += kStepKeys) {
    const Sources sources(first, start);
    for (std::int64_t head = 0; head < tile.kv_heads; ++head) {
      const Walk walk = of_head(head);
      const Blocks<T> now = find_blocks<T>(walk, start, sources);
      if (direct) {
        const std::int64_t later = start + (head + kHeadsAhead) / tile.kv_heads * kStepKeys;
        const Blocks<T> fetched =
            later < end_key ? find_blocks<T>(of_head((head + kHeadsAhead) % tile.kv_heads), later,
                                             Sources(first, later))
                            : now;
        prefetch_scales(fetched);
        attend(walk, Step<T>{now, fetched, walk.width}, start, results(head));
      } else {
        const Blocks<Prepared<T>> prepared = prepare_blocks(walk, now, sources);
        attend(walk, Step<Prepared<T>>{prepared, prepared, walk.width}, start, results(head));
      }
    }
  }

  for (std::int64_t head = 0; head < tile.kv_heads; ++head) end(of_head(head), results(head));
}

}  // namespace

void attention_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t split,
                     float* scratch, float* partial) {
  const Partial<float> result(partial, rows_of(call, tile), attention_width(call.head_dim));
  switch (call.cache_dtype) {
    case CacheDType::float32:
      return walk_split<float>(call, tile, split, scratch, result);
    case CacheDType::bfloat16:
      return walk_split<BFloat16>(call, tile, split, scratch, result);
    case CacheDType::float16:
      return walk_split<Float16>(call, tile, split, scratch, result);
    case CacheDType::int8:
      return walk_split<std::int8_t>(call, tile, split, scratch, result);
  }
}

void attention_merge(const AttentionCall& call, const AttentionTile& tile, float* into,
                     const float* later) {
  const std::int64_t rows = rows_of(call, tile);
  const std::int64_t width = attention_width(call.head_dim);
  const Partial<float> a(into, rows, width);
  const Partial<const float> b(later, rows, width);
  for (std::int64_t row = 0; row < rows; ++row) {
    if (b.total[row] == 0.0F) continue;
    float* sums = a.sums + row * width;
    const float* later_sums = b.sums + row * width;
    if (a.total[row] == 0.0F) {
      std::memcpy(sums, later_sums, static_cast<std::size_t>(width) * sizeof(float));
      a.most[row] = b.most[row];
      a.total[row] = b.total[row];
      continue;
    }
    const float most = a.most[row] > b.most[row] ? a.most[row] : b.most[row];
    const Vec factor = exp(splat(a.most[row]) - splat(most));
    const Vec later_factor = exp(splat(b.most[row]) - splat(most));
    for (std::int64_t d = 0; d < width; d += Vec::width) {
      store(sums + d, fma(load(later_sums + d), later_factor, load(sums + d) * factor));
    }
    const Vec total = fma(splat(b.total[row]), later_factor, splat(a.total[row]) * factor);
    a.most[row] = most;
    a.total[row] = max_lane(total);
  }
}

void attention_finish(const AttentionCall& call, const AttentionTile& tile, const float* partial) {
  const std::int64_t group = call.num_heads / call.num_kv_heads;
  const std::int64_t rows = tile.queries * group;
  const std::int64_t width = attention_width(call.head_dim);
  const Partial<const float> result(partial, rows_of(call, tile), width);
  for (std::int64_t row = 0; row < rows * tile.kv_heads; ++row) {
    const std::int64_t token = tile.row + row % rows / group;
    const std::int64_t head = (tile.kv_head + row / rows) * group + row % group;
    float* out = call.out + (token * call.num_heads + head) * call.head_dim;
    const float* sums = result.sums + row * width;
    const float total = result.total[row];
    for (std::int64_t d = 0; d < call.head_dim; ++d)
      out[d] = total == 0.0F ? 0.0F : sums[d] / total;
  }
}

}  // namespace qwell::QWELL_ISA
