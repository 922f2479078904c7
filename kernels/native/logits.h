#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "isa.h"
#include "pool.h"

// What ops over rows of logits share. Values are compared and summed as if infinities were the
// largest numbers, and NaN the lowest one: so every row has a most likely id.
namespace qwell {

constexpr float kHighest = std::numeric_limits<float>::max();
constexpr float kLowest = std::numeric_limits<float>::lowest();

static inline float finite(float x) {
  const float number = x > kLowest ? x : kLowest;
  return number < kHighest ? number : kHighest;
}

// Consecutive logits of which the maximum is kept, so that later passes skip most of a row.
constexpr std::int64_t kLogitBlock = 128;

// Consecutive logits that are summed by one task, whatever the number of threads.
constexpr std::int64_t kLogitChunk = 32 * kLogitBlock;

// The weight of x is e^((x - max) * scale).
struct Exponent {
  double max;
  double scale;
};

// Each from logits_kernel.cpp. In double precision, with an error of a few ulps; a weight below
// e^-708 is 0.
QWELL_PER_ISA(void block_maxima(const float* x, std::int64_t size, float* maxima);
              void weights(const float* x, std::int64_t size, Exponent exponent, double* out);
              double weight_sum(const float* x, std::int64_t size, Exponent exponent);)

// Some ids of a row, ascending, and their values.
struct Candidates {
  std::vector<float> values;
  std::vector<std::int32_t> ids;

  std::int64_t size() const { return static_cast<std::int64_t>(ids.size()); }
  void resize(std::size_t size) {
    values.resize(size);
    ids.resize(size);
  }
};

class LogitRow {
 public:
  LogitRow(const float* x, std::int64_t size, const float* maxima);

  const float* x() const { return x_; }
  std::int64_t size() const { return size_; }
  float max() const { return max_; }

  // The first id with the largest value.
  std::int32_t first_maximum() const;

  // The ids with values from `floor` up.
  Candidates at_least(float floor) const;

  // The k ids with the largest values, 1 <= k <= size, and those equal to the last of them.
  Candidates largest(std::int64_t k) const;

 private:
  const float* x_;
  std::int64_t size_;
  const float* maxima_;
  float max_;
};

// Rows of logits and what parallel passes over them gathered. Results depend on a row alone.
class LogitRows {
 public:
  LogitRows(const LogitRows&) = delete;
  LogitRows& operator=(const LogitRows&) = delete;

  // Looks for maxima. `rows` point to `size` logits each, and must outlive this.
  LogitRows(Isa isa, Pool& pool, const std::vector<const float*>& rows, std::int64_t size);

  const LogitRow& operator[](std::int64_t row) const {
    return rows_[static_cast<std::size_t>(row)];
  }

  // Sums the weights in each chunk of the rows whose scale is not 0. One scale a row.
  void sum_weights(Isa isa, Pool& pool, const std::vector<double>& scales);

  std::int64_t chunks() const { return chunks_; }
  double chunk_sum(std::int64_t row, std::int64_t chunk) const {
    return sums_[static_cast<std::size_t>(row * chunks_ + chunk)];
  }
  double sum(std::int64_t row) const;

 private:
  std::int64_t chunks_;
  std::vector<float> maxima_;
  std::vector<LogitRow> rows_;
  std::vector<double> sums_;
};

}  // namespace qwell
