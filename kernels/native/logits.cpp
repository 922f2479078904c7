#include "logits.h"

#include <algorithm>
#include <functional>

namespace qwell {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

LogitRow::LogitRow(const float* x, std::int64_t size, const float* maxima)
    : x_(x),
      size_(size),
      maxima_(maxima),
      max_(*std::max_element(maxima, maxima + divide_up(size, kLogitBlock))) {}

std::int32_t LogitRow::first_maximum() const {
  const float* block = std::find(maxima_, maxima_ + divide_up(size_, kLogitBlock), max_);
  const float* from = x_ + (block - maxima_) * kLogitBlock;
  while (finite(*from) != max_) ++from;
  return static_cast<std::int32_t>(from - x_);
}

Candidates LogitRow::at_least(float floor) const {
  const std::int64_t blocks = divide_up(size_, kLogitBlock);
  const auto reaching =
      std::count_if(maxima_, maxima_ + blocks, [floor](float maximum) { return maximum >= floor; });
  Candidates out;
  out.resize(static_cast<std::size_t>(reaching * kLogitBlock));
  // Without branches, which could not be foretold: all are written, those below overwritten.
  std::size_t count = 0;
  for (std::int64_t start = 0; start < size_; start += kLogitBlock) {
    if (maxima_[start / kLogitBlock] < floor) continue;
    const std::int64_t end = std::min(start + kLogitBlock, size_);
    for (std::int64_t i = start; i < end; ++i) {
      out.values[count] = finite(x_[i]);
      out.ids[count] = static_cast<std::int32_t>(i);
      count += out.values[count] >= floor;
    }
  }
  out.resize(count);
  return out;
}

Candidates LogitRow::largest(std::int64_t k) const {
  const auto kth_largest = [k](std::vector<float> values) {
    std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
    return values[static_cast<std::size_t>(k - 1)];
  };
  // As many ids as blocks have maxima from the k-th largest maximum up: no other can be among
  // the k largest.
  const std::int64_t blocks = divide_up(size_, kLogitBlock);
  Candidates out = at_least(k <= blocks ? kth_largest({maxima_, maxima_ + blocks}) : kLowest);
  const float floor = kth_largest(out.values);
  std::size_t count = 0;
  for (std::size_t i = 0; i < out.ids.size(); ++i) {
    out.values[count] = out.values[i];
    out.ids[count] = out.ids[i];
    count += out.values[i] >= floor;
  }
  out.resize(count);
  return out;
}

LogitRows::LogitRows(Isa isa, Pool& pool, const std::vector<const float*>& rows, std::int64_t size)
    : chunks_(divide_up(size, kLogitChunk)) {
  const auto kernel = QWELL_KERNEL(isa, block_maxima);
  const std::int64_t blocks = divide_up(size, kLogitBlock);
  const auto count = static_cast<std::int64_t>(rows.size());
  maxima_.resize(static_cast<std::size_t>(count * blocks));
  pool.run(count * chunks_, [&](std::int64_t i) {
    const std::int64_t row = i / chunks_;
    const std::int64_t start = i % chunks_ * kLogitChunk;
    kernel(rows[static_cast<std::size_t>(row)] + start, std::min(kLogitChunk, size - start),
           maxima_.data() + row * blocks + start / kLogitBlock);
  });
  rows_.reserve(rows.size());
  for (std::int64_t row = 0; row < count; ++row) {
    rows_.emplace_back(rows[static_cast<std::size_t>(row)], size, maxima_.data() + row * blocks);
  }
}

void LogitRows::sum_weights(Isa isa, Pool& pool, const std::vector<double>& scales) {
  const auto kernel = QWELL_KERNEL(isa, weight_sum);
  std::vector<std::int64_t> chosen;
  for (std::size_t row = 0; row < scales.size(); ++row) {
    if (scales[row] != 0) chosen.push_back(static_cast<std::int64_t>(row));
  }
  sums_.resize(rows_.size() * static_cast<std::size_t>(chunks_));
  pool.run(static_cast<std::int64_t>(chosen.size()) * chunks_, [&](std::int64_t i) {
    const auto row = static_cast<std::size_t>(chosen[static_cast<std::size_t>(i / chunks_)]);
    const LogitRow& logits = rows_[row];
    const std::int64_t start = i % chunks_ * kLogitChunk;
    sums_[row * static_cast<std::size_t>(chunks_) + static_cast<std::size_t>(i % chunks_)] =
        kernel(logits.x() + start, std::min(kLogitChunk, logits.size() - start),
               {.max = logits.max(), .scale = scales[row]});
  });
}

double LogitRows::sum(std::int64_t row) const {
  double sum = 0;
  for (std::int64_t chunk = 0; chunk < chunks_; ++chunk) sum += chunk_sum(row, chunk);
  return sum;
}

}  // namespace qwell
