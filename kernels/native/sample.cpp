#include "sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "logits.h"

namespace qwell {
namespace {

// The parameters of a row, NaN replaced by what keeps the draw among the ids.
struct Settings {
  Settings(const SampleCall& call, std::int64_t row)
      : temperature(call.temperature[row]),
        // Colder than that, only the maximum is left; the inverse stays finite.
        scale(1 / std::max(1e-30, temperature)),
        top_k(call.top_k[row] < call.vocabulary ? std::max(call.top_k[row], 0) : 0),
        top_p(std::max(0.0, call.top_p[row])),
        min_p(std::min(1.0, std::max(0.0, call.min_p[row]))),
        typical_p(std::max(0.0, call.typical_p[row])),
        uniform(call.uniform[row]) {}

  bool greedy() const { return temperature == 0; }
  // Whether it takes the weights of the whole row to know which ids are kept.
  bool needs_sum() const { return !greedy() && top_k == 0 && (top_p < 1 || min_p <= 0); }

  double temperature;
  double scale;
  std::int32_t top_k;  // 0 keeps all
  double top_p;
  double min_p;
  double typical_p;
  double uniform;
};

// Where a running sum of weights passes `target`, and the sum before that.
struct Place {
  std::int64_t at;
  double before;
};

// Rounding may keep even the whole sum from passing it: then the last place of any weight.
template <class WeightAt>
Place pass(std::int64_t size, double target, const WeightAt& weight_at) {
  Place last{0, 0};
  double sum = 0;
  for (std::int64_t i = 0; i < size && sum <= target; ++i) {
    const double weight = weight_at(i);
    if (weight <= 0) continue;
    last = {i, sum};
    sum += weight;
  }
  return last;
}

// The last id of a set of the largest values: the last one with the least value in it.
struct Last {
  float value;
  std::int32_t id;
};

// Of the smallest set of ids, largest value first, whose weights reach `limit`. Weights are summed
// in ranges of values, largest first: only the range in which the set ends is sorted.
Last last_to_reach(double limit, const Candidates& candidates, const std::vector<double>& weights) {
  constexpr std::size_t kRanges = 2048;
  const std::vector<float>& values = candidates.values;
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  const double top = *most;
  const double density = top > *least ? (kRanges - 1) / (top - *least) : 0;
  std::vector<std::int32_t> ranges(values.size());
  std::transform(values.begin(), values.end(), ranges.begin(),
                 [&](float value) { return static_cast<std::int32_t>((top - value) * density); });
  std::array<double, kRanges> sums{};
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    sums[static_cast<std::size_t>(ranges[i])] += weights[i];
  }
  std::size_t range = 0;
  double sum = 0;
  while (range + 1 < kRanges && sum + sums[range] < limit) sum += sums[range++];

  std::vector<std::size_t> members;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    if (static_cast<std::size_t>(ranges[i]) == range) members.push_back(i);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  // All of them, should rounding keep their sum below the limit.
  Last last{*least, candidates.ids.back()};
  for (const std::size_t i : members) {
    last = {values[i], candidates.ids[i]};
    sum += weights[i];
    if (sum >= limit) break;
  }
  return last;
}

class Sampler {
 public:
  Sampler(Isa isa, const LogitRows& rows) : isa_(isa), rows_(rows) {}

  std::int32_t draw(std::int64_t row, const Settings& settings) const {
    if (settings.greedy()) return rows_[row].first_maximum();
    const bool keeps_all = settings.top_k == 0 && !(settings.top_p < 1) &&
                           !(settings.min_p > 0) && !(settings.typical_p < 1);
    return keeps_all ? draw_any(row, settings) : draw_likely(row, settings);
  }

 private:
  // One of all ids: chunks first, then the ids of one.
  std::int32_t draw_any(std::int64_t row, const Settings& settings) const {
    const LogitRow& logits = rows_[row];
    const double target = settings.uniform * rows_.sum(row);
    const Place chunk =
        pass(rows_.chunks(), target, [&](std::int64_t i) { return rows_.chunk_sum(row, i); });
    const std::int64_t start = chunk.at * kLogitChunk;
    const std::int64_t size = std::min(kLogitChunk, logits.size() - start);
    const std::vector<double> weights = weights_of(logits.x() + start, size, logits, settings);
    return static_cast<std::int32_t>(start + draw_from(weights, target - chunk.before));
  }

  // One of those that top-k, top-p, min-p and typical-p keep.
  std::int32_t draw_likely(std::int64_t row, const Settings& settings) const {
    const LogitRow& logits = rows_[row];
    const Candidates candidates =
        settings.top_k > 0 ? logits.largest(settings.top_k) : logits.at_least(floor(row, settings));
    std::vector<double> weights =
        weights_of(candidates.values.data(), candidates.size(), logits, settings);
    if (settings.top_p < 1) {
      const double whole = settings.top_k > 0 ? sum(weights) : rows_.sum(row);
      const Last last = last_to_reach(settings.top_p * whole, candidates, weights);
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const float value = candidates.values[i];
        const bool kept =
            (value > last.value) | ((value == last.value) & (candidates.ids[i] <= last.id));
        weights[i] = kept ? weights[i] : 0;
      }
    }
    // The most likely id has weight 1.
    for (double& weight : weights) weight = weight < settings.min_p ? 0 : weight;
    if (settings.typical_p < 1) keep_typical(logits.max(), settings, candidates, weights);
    const std::int64_t place = draw_from(weights, settings.uniform * sum(weights));
    return candidates.ids[static_cast<std::size_t>(place)];
  }

  // Zeroes the weights of all but the ids whose surprise is nearest to the mean of it: as many as
  // reach typical_p of the sum, and those that are as near as the last of these. Distances are
  // compared in single precision.
  static void keep_typical(double max, const Settings& settings, const Candidates& candidates,
                           std::vector<double>& weights) {
    // Surprise is that of the most likely id plus this, and so is its mean, the entropy.
    const auto surprise = [&](std::size_t i) {
      return (max - candidates.values[i]) * settings.scale;
    };
    const double whole = sum(weights);
    double mean = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] > 0) mean += weights[i] / whole * surprise(i);
    }
    Candidates nearness;
    std::vector<double> kept;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] <= 0) continue;
      nearness.values.push_back(static_cast<float>(-std::abs(surprise(i) - mean)));
      nearness.ids.push_back(static_cast<std::int32_t>(i));
      kept.push_back(weights[i]);
    }
    const Last last = last_to_reach(settings.typical_p * whole, nearness, kept);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (nearness.values[i] < last.value) {
        weights[static_cast<std::size_t>(nearness.ids[i])] = 0;
      }
    }
  }

  // A value below which top-p and min-p keep nothing.
  float floor(std::int64_t row, const Settings& settings) const {
    const LogitRow& logits = rows_[row];
    double least = settings.min_p;
    if (settings.top_p < 1) {
      // Weights below (1 - top_p) / size of the sum do not add up to what top-p leaves out.
      const auto size = static_cast<double>(logits.size());
      least = std::max(least, (1 - settings.top_p) * rows_.sum(row) / size);
    }
    // Half of it, and the float below: all of this is rounded.
    const double floor = logits.max() + std::log(least / 2) / settings.scale;
    return std::nextafter(static_cast<float>(std::clamp<double>(floor, kLowest, logits.max())),
                          kLowest);
  }

  std::vector<double> weights_of(const float* x, std::int64_t size, const LogitRow& row,
                                 const Settings& settings) const {
    std::vector<double> out(static_cast<std::size_t>(size));
    QWELL_KERNEL(isa_, weights)(x, size, {.max = row.max(), .scale = settings.scale}, out.data());
    return out;
  }

  // In several partial sums, which do not wait for one another.
  static double sum(const std::vector<double>& weights) {
    constexpr std::size_t kLanes = 8;
    std::array<double, kLanes> lanes{};
    std::size_t i = 0;
    for (; i + kLanes <= weights.size(); i += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += weights[i + lane];
    }
    for (; i < weights.size(); ++i) lanes[0] += weights[i];
    return std::accumulate(lanes.begin(), lanes.end(), 0.0);
  }

  static std::int64_t draw_from(const std::vector<double>& weights, double target) {
    return pass(static_cast<std::int64_t>(weights.size()), target,
                [&](std::int64_t i) { return weights[static_cast<std::size_t>(i)]; })
        .at;
  }

  Isa isa_;
  const LogitRows& rows_;
};

}  // namespace

void sample(Isa isa, Pool& pool, const SampleCall& call) {
  std::vector<const float*> logits;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    logits.push_back(call.logits + row * call.vocabulary);
  }
  LogitRows rows(isa, pool, logits, call.vocabulary);
  std::vector<Settings> settings;
  std::vector<double> scales;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    settings.emplace_back(call, row);
    scales.push_back(settings.back().needs_sum() ? settings.back().scale : 0);
  }
  rows.sum_weights(isa, pool, scales);
  const Sampler sampler(isa, rows);
  pool.run(call.rows, [&](std::int64_t row) {
    call.next_ids[row] = sampler.draw(row, settings[static_cast<std::size_t>(row)]);
  });
}

}  // namespace qwell
