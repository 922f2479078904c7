// rope, and attention over the cache that it wrote, on every instruction set of this machine
// against their definitions in double precision. Buffers end where their data does.
// Prints the first failures and ends with "N passed, N failed"; the exit status tells as well.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention.h"
#include "number_format.h"
#include "rope.h"

namespace {

constexpr float kEps = 1e-6F;
constexpr std::int64_t kPositions = 700;

int passed = 0;
int failed = 0;

void expect(bool holds, const std::string& what) {
  if (holds) {
    ++passed;
  } else if (++failed <= 20) {
    std::printf("FAILED %s\n", what.c_str());
  }
}

struct CacheFormat {
  const char* name;
  qwell::CacheDType dtype;
  std::int64_t bytes;
  const NumberFormat* number;  // null for integers with scales
};

constexpr CacheFormat cache_formats[] = {
    {"float32", qwell::CacheDType::float32, 4, &formats[0]},
    {"bfloat16", qwell::CacheDType::bfloat16, 2, &formats[1]},
    {"float16", qwell::CacheDType::float16, 2, &formats[2]},
    {"int8", qwell::CacheDType::int8, 1, nullptr},
};

struct Shape {
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t head_dim;
  std::int64_t window;

  std::int64_t group() const { return num_heads / num_kv_heads; }
  std::int64_t features() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

// One sequence, whose blocks lie in descending order behind one that is not its own.
struct Case {
  Case(const CacheFormat& of, const Shape& shape, std::int64_t tokens, std::mt19937& random)
      : format(of), shape(shape), tokens(tokens) {
    std::normal_distribution<float> normal;
    const auto draw = [&](std::vector<float>& values, std::int64_t size) {
      values.resize(static_cast<std::size_t>(size));
      for (float& value : values) value = normal(random);
    };
    draw(qkv, tokens * shape.features());
    draw(norm, shape.head_dim);
    draw(cos_sin, kPositions * shape.head_dim);
    const std::int64_t blocks = (tokens + qwell::kBlockTokens - 1) / qwell::kBlockTokens;
    for (std::int64_t b = 0; b < blocks; ++b) {
      table.push_back(static_cast<std::int32_t>(blocks - b));
    }
    for (std::int32_t token = 0; token < tokens; ++token) {
      positions.push_back(token);
      slots.push_back(table[static_cast<std::size_t>(token / qwell::kBlockTokens)] *
                          static_cast<std::int32_t>(qwell::kBlockTokens) +
                      token % static_cast<std::int32_t>(qwell::kBlockTokens));
    }
    cache_size = (blocks + 1) * shape.num_kv_heads * qwell::kBlockTokens * shape.head_dim;
  }

  std::string name(qwell::Isa isa) const {
    return std::string(qwell::isa_name(isa)) + " " + format.name + " heads " +
           std::to_string(shape.num_heads) + "/" + std::to_string(shape.num_kv_heads) + " of " +
           std::to_string(shape.head_dim) + ", " + std::to_string(tokens) + " tokens, window " +
           std::to_string(shape.window);
  }

  // Place in the cache of feature d of a token: of its key, or of its value.
  std::int64_t place(bool key, std::int64_t token, std::int64_t head, std::int64_t d) const {
    const std::int64_t slot = slots[static_cast<std::size_t>(token)];
    const std::int64_t block = slot / qwell::kBlockTokens * shape.num_kv_heads + head;
    const std::int64_t offset = slot % qwell::kBlockTokens;
    const std::int64_t inside =
        key ? d * qwell::kBlockTokens + offset : offset * shape.head_dim + d;
    return block * qwell::kBlockTokens * shape.head_dim + inside;
  }

  // Of the scale of its key, or of its value.
  std::int64_t scale_place(std::int64_t token, std::int64_t head) const {
    return place(false, token, head, 0) / shape.head_dim;
  }

  CacheFormat format;
  Shape shape;
  std::int64_t tokens;
  std::vector<float> qkv, norm, cos_sin;
  std::vector<std::int32_t> table, positions, slots;
  std::int64_t cache_size;
};

struct Result {
  std::vector<float> q, out;
  std::vector<std::uint8_t> k_cache, v_cache;
  std::vector<float> k_scales, v_scales;

  double cached(const Case& c, bool key, std::int64_t token, std::int64_t head,
                std::int64_t d) const {
    std::uint32_t bits = 0;  // little-endian, as are all processors that qwell runs on
    std::memcpy(&bits,
                (key ? k_cache : v_cache).data() + c.place(key, token, head, d) * c.format.bytes,
                static_cast<std::size_t>(c.format.bytes));
    if (c.format.number != nullptr) return c.format.number->decode(bits);
    const std::vector<float>& scales = key ? k_scales : v_scales;
    return static_cast<double>(static_cast<std::int8_t>(bits)) *
           scales[static_cast<std::size_t>(c.scale_place(token, head))];
  }
};

// The last `queries` tokens attend, in a step with room for more sequences.
void attend(const Case& c, qwell::Isa isa, qwell::Pool& pool, std::int64_t queries,
            const Result& from, float* out) {
  const std::int64_t width = c.shape.num_heads * c.shape.head_dim;
  const auto rows = static_cast<std::int32_t>(queries);
  const std::int32_t starts[] = {0, rows, rows};
  const std::int32_t lengths[] = {static_cast<std::int32_t>(c.tokens), 0};
  qwell::attention(isa, pool,
                   {.q = from.q.data() + (c.tokens - queries) * width,
                    .k_cache = from.k_cache.data(),
                    .v_cache = from.v_cache.data(),
                    .k_scales = from.k_scales.data(),
                    .v_scales = from.v_scales.data(),
                    .block_table = c.table.data(),
                    .cu_seqlens_q = starts,
                    .seq_lens = lengths,
                    .out = out,
                    .rows = queries,
                    .max_seqs = 2,
                    .table_stride = static_cast<std::int64_t>(c.table.size()),
                    .num_heads = c.shape.num_heads,
                    .num_kv_heads = c.shape.num_kv_heads,
                    .head_dim = c.shape.head_dim,
                    .window = c.shape.window,
                    .scale = 1 / std::sqrt(static_cast<float>(c.shape.head_dim)),
                    .cache_dtype = c.format.dtype});
}

Result run(const Case& c, qwell::Isa isa, qwell::Pool& pool) {
  const auto width = static_cast<std::size_t>(c.tokens * c.shape.num_heads * c.shape.head_dim);
  // Bytes of ones are NaN in every format.
  const std::vector<std::uint8_t> cache(static_cast<std::size_t>(c.cache_size * c.format.bytes),
                                        0xFF);
  const bool scaled = c.format.number == nullptr;
  const std::vector<float> scales(
      static_cast<std::size_t>(scaled ? c.cache_size / c.shape.head_dim : 0), NAN);
  Result result{
      std::vector<float>(width, NAN), std::vector<float>(width, NAN), cache, cache, scales, scales};
  qwell::rope(isa, pool,
              {.qkv = c.qkv.data(),
               .positions = c.positions.data(),
               .cos_sin = c.cos_sin.data(),
               .q_norm = c.norm.data(),
               .k_norm = c.norm.data(),
               .slot_mapping = c.slots.data(),
               .k_cache = result.k_cache.data(),
               .v_cache = result.v_cache.data(),
               .k_scales = result.k_scales.data(),
               .v_scales = result.v_scales.data(),
               .q = result.q.data(),
               .rows = c.tokens,
               .num_heads = c.shape.num_heads,
               .num_kv_heads = c.shape.num_kv_heads,
               .head_dim = c.shape.head_dim,
               .eps = kEps,
               .cache_dtype = c.format.dtype});
  attend(c, isa, pool, c.tokens, result, result.out.data());
  return result;
}

// Head `head` of qkv normed and rotated, feature d.
double rotated(const Case& c, std::int64_t token, std::int64_t head, std::int64_t d) {
  const std::int64_t half = c.shape.head_dim / 2;
  const float* x = c.qkv.data() + token * c.shape.features() + head * c.shape.head_dim;
  const float* cos = c.cos_sin.data() + token * c.shape.head_dim;
  double squares = 0;
  for (std::int64_t i = 0; i < c.shape.head_dim; ++i) squares += double{x[i]} * x[i];
  const double scale = 1 / std::sqrt(squares / static_cast<double>(c.shape.head_dim) + kEps);
  const auto normed = [&](std::int64_t i) {
    return x[i] * scale * c.norm[static_cast<std::size_t>(i)];
  };
  const std::int64_t j = d % half;
  return d < half ? normed(j) * cos[j] - normed(half + j) * cos[half + j]
                  : normed(half + j) * cos[j] + normed(j) * cos[half + j];
}

double round_to(const CacheFormat& format, double value, float scale) {
  if (format.number != nullptr) return format.number->round(value);
  return std::nearbyint(value / scale) * scale;
}

// How far rounding may move a value from what is within an error of it.
double rounding(const CacheFormat& format, double value, double largest, double error) {
  if (format.number != nullptr) return format.number->epsilon() * std::abs(value);
  // Half a scale, and the roundings of scale and quotient.
  return (0.5 + 127 * 0x1p-23) * (largest + error) / 127;
}

// Products of normal numbers stay far below this.
constexpr double kLargest = 100;

void check_rope(const Case& c, qwell::Isa isa, const Result& result) {
  const double error = static_cast<double>(c.shape.head_dim + 32) * 0x1p-24 * kLargest;
  std::int64_t wrong = 0;
  const auto head_dim = static_cast<std::size_t>(c.shape.head_dim);
  for (std::int64_t token = 0; token < c.tokens; ++token) {
    for (std::int64_t h = 0; h < c.shape.num_heads; ++h) {
      for (std::int64_t d = 0; d < c.shape.head_dim; ++d) {
        const std::int64_t at = (token * c.shape.num_heads + h) * c.shape.head_dim + d;
        const double q = result.q[static_cast<std::size_t>(at)];
        wrong += !(std::abs(q - rotated(c, token, h, d)) <= error);
      }
    }
    for (std::int64_t h = 0; h < c.shape.num_kv_heads; ++h) {
      const std::int64_t head = c.shape.num_heads + c.shape.num_kv_heads + h;
      const float* v = c.qkv.data() + token * c.shape.features() + head * c.shape.head_dim;
      std::vector<double> k(head_dim);
      double largest_k = 0;
      float largest_v = 0;
      for (std::size_t d = 0; d < head_dim; ++d) {
        k[d] = rotated(c, token, c.shape.num_heads + h, static_cast<std::int64_t>(d));
        largest_k = std::max(largest_k, std::abs(k[d]));
        largest_v = std::max(largest_v, std::abs(v[d]));
      }
      for (std::size_t d = 0; d < head_dim; ++d) {
        const auto feature = static_cast<std::int64_t>(d);
        wrong += !(std::abs(result.cached(c, true, token, h, feature) - k[d]) <=
                   error + rounding(c.format, k[d], largest_k, error));
        wrong +=
            result.cached(c, false, token, h, feature) != round_to(c.format, v[d], largest_v / 127);
      }
    }
  }
  expect(wrong == 0, c.name(isa) + ": " + std::to_string(wrong) + " elements of rope are wrong");
}

// Keys or values of a cache, [tokens, num_kv_heads, head_dim].
std::vector<double> decoded(const Case& c, const Result& result, bool key) {
  std::vector<double> values;
  for (std::int64_t token = 0; token < c.tokens; ++token) {
    for (std::int64_t h = 0; h < c.shape.num_kv_heads; ++h) {
      for (std::int64_t d = 0; d < c.shape.head_dim; ++d) {
        values.push_back(result.cached(c, key, token, h, d));
      }
    }
  }
  return values;
}

void check_attention(const Case& c, qwell::Isa isa, const Result& result) {
  const double scale = 1 / std::sqrt(static_cast<double>(c.shape.head_dim));
  const auto head_dim = static_cast<std::size_t>(c.shape.head_dim);
  const std::vector<double> cached_keys = decoded(c, result, true);
  const std::vector<double> cached_values = decoded(c, result, false);
  // For dot products of pairs queries and weights are rounded.
  const bool pairs =
      isa == qwell::Isa::avx512_bf16 && c.format.dtype == qwell::CacheDType::bfloat16;
  std::int64_t wrong = 0;
  for (std::int64_t token = 0; token < c.tokens; ++token) {
    for (std::int64_t h = 0; h < c.shape.num_heads; ++h) {
      const std::int64_t first =
          c.shape.window > 0 ? std::max<std::int64_t>(token - c.shape.window + 1, 0) : 0;
      const std::int64_t row = (token * c.shape.num_heads + h) * c.shape.head_dim;
      const auto row_of = [&](const std::vector<double>& of, std::int64_t position) {
        const std::int64_t head = position * c.shape.num_kv_heads + h / c.shape.group();
        return of.data() + head * c.shape.head_dim;
      };
      std::vector<double> query(head_dim);
      for (std::size_t d = 0; d < head_dim; ++d) {
        const float value = result.q[static_cast<std::size_t>(row) + d];
        query[d] = pairs ? c.format.number->round(value * static_cast<float>(scale)) : scale * value;
      }
      std::vector<double> scores;
      double largest_size = 0;
      double largest_query = 0;  // element, scaled
      double largest_key = 0;    // sum of its elements' magnitudes
      for (std::int64_t position = first; position <= token; ++position) {
        double score = 0;
        double size = 0;
        double magnitudes = 0;
        const double* key = row_of(cached_keys, position);
        for (std::size_t d = 0; d < head_dim; ++d) {
          const double product = query[d] * key[d];
          score += product;
          size += std::abs(product);
          magnitudes += std::abs(key[d]);
          largest_query = std::max(largest_query, std::abs(query[d]));
        }
        largest_key = std::max(largest_key, magnitudes);
        scores.push_back(score);
        largest_size = std::max(largest_size, size);
      }
      const double most = *std::max_element(scores.begin(), scores.end());
      std::vector<double> mixed(head_dim, 0.0);
      double total = 0;
      double largest_value = 0;
      for (std::int64_t position = first; position <= token; ++position) {
        const double weight = std::exp(scores[static_cast<std::size_t>(position - first)] - most);
        total += weight;
        const double* value = row_of(cached_values, position);
        for (std::size_t d = 0; d < head_dim; ++d) {
          mixed[d] += weight * value[d];
          largest_value = std::max(largest_value, std::abs(value[d]));
        }
      }
      // Roundings of a score, of exp at each of its uses, of what scales the two, and of sums over
      // keys; twice, in the sum and in the total.
      const double count = static_cast<double>(token - first + 1);
      const double roundings = 2 * ((static_cast<double>(c.shape.head_dim) + 3) * largest_size +
                                    count + 1 + 4 * (count / 64 + count / 512 + 4));
      double error = roundings * 0x1p-24 * largest_value;
      if (c.format.number == nullptr) {
        // 2^-16 of the largest element of a query, at each of a score's products, and of the
        // largest weight of 64 keys, at each of these.
        error += (2 * largest_query * largest_key + 64) * 0x1p-16 * largest_value;
      }
      for (std::size_t d = 0; d < head_dim; ++d) {
        const double mean = mixed[d] / total;
        double moved = 0;
        if (pairs) {
          // Sum and total have the same roundings, so what all values share is not moved.
          for (std::int64_t position = first; position <= token; ++position) {
            const double weight =
                std::exp(scores[static_cast<std::size_t>(position - first)] - most);
            moved += weight / total * std::abs(row_of(cached_values, position)[d] - mean);
          }
          moved *= 0x1p-8 / (1 - 0x1p-8);
        }
        const double out = result.out[static_cast<std::size_t>(row) + d];
        wrong += !(std::abs(out - mean) <= error + moved);
      }
    }
  }
  expect(wrong == 0, c.name(isa) + ": " + std::to_string(wrong) + " elements are wrong");
}

void check_case(const Case& c) {
  static qwell::Pool alone(1);
  static qwell::Pool pool(3);
  const std::int64_t width = c.shape.num_heads * c.shape.head_dim;
  for (const qwell::Isa isa : qwell::runnable_isas()) {
    const Result result = run(c, isa, pool);
    check_rope(c, isa, result);
    check_attention(c, isa, result);
    for (const std::int64_t queries : {std::int64_t{1}, std::min<std::int64_t>(c.tokens, 5)}) {
      std::vector<float> out(static_cast<std::size_t>(queries * width), NAN);
      attend(c, isa, alone, queries, result, out.data());
      const float* whole = result.out.data() + (c.tokens - queries) * width;
      expect(std::memcmp(out.data(), whole, out.size() * sizeof(float)) == 0,
             c.name(isa) + ": the bits of the last queries depend on others");
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  const Shape shapes[] = {{1, 1, 8, 0},  {4, 2, 40, 0},    {7, 1, 16, 33}, {8, 1, 64, 0},
                          {9, 1, 6, 70}, {12, 2, 80, 100}, {2, 2, 128, 0}};
  for (const CacheFormat& format : cache_formats) {
    for (const Shape& shape : shapes) {
      for (const std::int64_t tokens : {1, 17, 64, 90}) {
        check_case(Case(format, shape, tokens, random));
      }
    }
    check_case(Case(format, {2, 1, 16, 0}, 600, random));
    check_case(Case(format, {2, 1, 16, 520}, 600, random));
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
