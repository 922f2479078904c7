// sample and logprobs on every instruction set of this machine against a sort of the whole row
// in double precision.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "expect.h"
#include "logprobs.h"
#include "sample.h"

namespace {

struct Parameters {
  double temperature = 1;
  std::int32_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;
  double uniform = 0;
};

struct Batch {
  std::int64_t vocabulary;
  std::vector<float> logits;
  std::vector<Parameters> rows;

  std::vector<float> row(std::size_t i) const {
    const auto start = logits.begin() + static_cast<std::ptrdiff_t>(i) * vocabulary;
    return {start, start + vocabulary};
  }

  template <class T>
  std::vector<T> column(T Parameters::* field) const {
    std::vector<T> out;
    for (const Parameters& row : rows) out.push_back(row.*field);
    return out;
  }
};

qwell::Pool& pool() {
  static qwell::Pool pool(2);
  return pool;
}

std::vector<std::int32_t> draw(qwell::Isa isa, const Batch& batch) {
  const auto temperature = batch.column(&Parameters::temperature);
  const auto top_k = batch.column(&Parameters::top_k);
  const auto top_p = batch.column(&Parameters::top_p);
  const auto min_p = batch.column(&Parameters::min_p);
  const auto typical_p = batch.column(&Parameters::typical_p);
  const auto uniform = batch.column(&Parameters::uniform);
  std::vector<std::int32_t> ids(batch.rows.size(), -1);
  qwell::sample(isa, pool(),
                {.logits = batch.logits.data(),
                 .temperature = temperature.data(),
                 .top_k = top_k.data(),
                 .top_p = top_p.data(),
                 .min_p = min_p.data(),
                 .typical_p = typical_p.data(),
                 .uniform = uniform.data(),
                 .next_ids = ids.data(),
                 .rows = static_cast<std::int64_t>(ids.size()),
                 .vocabulary = batch.vocabulary});
  return ids;
}

// Ids by descending value, equal ones by ascending id.
std::vector<std::int32_t> in_order(const std::vector<float>& logits) {
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  return ids;
}

std::int32_t expected_id(const std::vector<float>& logits, const Parameters& row) {
  std::vector<std::int32_t> ids = in_order(logits);
  const auto logit = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
  if (row.temperature == 0) return ids[0];
  const float most = logit(ids[0]);
  const auto weight = [&](std::int32_t id) {
    return std::exp((static_cast<double>(logit(id)) - most) / row.temperature);
  };
  if (row.top_k > 0 && row.top_k < static_cast<std::int32_t>(ids.size())) {
    const float least = logit(ids[static_cast<std::size_t>(row.top_k - 1)]);
    std::erase_if(ids, [&](std::int32_t id) { return logit(id) < least; });
  }
  const auto sum = [&] {
    return std::accumulate(ids.begin(), ids.end(), 0.0,
                           [&](double all, std::int32_t id) { return all + weight(id); });
  };
  if (row.top_p < 1) {
    const double limit = row.top_p * sum();
    double before = 0;
    std::size_t count = 0;
    while (count == 0 || (count < ids.size() && before < limit)) before += weight(ids[count++]);
    ids.resize(count);
  }
  std::erase_if(ids, [&](std::int32_t id) { return weight(id) < row.min_p; });
  if (row.typical_p < 1) {
    const double whole = sum();
    double entropy = 0;
    for (const std::int32_t id : ids) {
      if (weight(id) > 0) entropy -= weight(id) / whole * std::log(weight(id) / whole);
    }
    const auto distance = [&](std::int32_t id) {
      return static_cast<float>(std::abs(std::log(weight(id) / whole) + entropy));
    };
    std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
      return distance(a) < distance(b);
    });
    double before = 0;
    std::size_t count = 0;
    while (count == 0 || (count < ids.size() && before < row.typical_p * whole)) {
      before += weight(ids[count++]);
    }
    const float most_distant = distance(ids[count - 1]);
    std::erase_if(ids, [&](std::int32_t id) { return distance(id) > most_distant; });
  }
  std::sort(ids.begin(), ids.end());
  const double target = row.uniform * sum();
  double passed_weight = 0;
  for (const std::int32_t id : ids) {
    passed_weight += weight(id);
    if (passed_weight > target) return id;
  }
  return ids.back();
}

Batch random_batch(std::int64_t vocabulary, bool ties, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0F, 3.0F);
  std::uniform_real_distribution<double> uniform;
  const auto one_of = [&](auto... values) {
    const std::vector<double> all{static_cast<double>(values)...};
    return all[random() % all.size()];
  };
  Batch batch{.vocabulary = vocabulary, .logits = {}, .rows = {}};
  for (int row = 0; row < 12; ++row) {
    for (std::int64_t i = 0; i < vocabulary; ++i) {
      const float logit = normal(random);
      batch.logits.push_back(ties ? std::round(logit) : logit);
    }
    batch.rows.push_back({.temperature = one_of(0, 0.1, 0.7, 1, 3),
                          .top_k = static_cast<std::int32_t>(one_of(0, 0, 1, 5, 200, vocabulary)),
                          .top_p = one_of(1, 1, uniform(random), uniform(random)),
                          .min_p = one_of(0, 0, uniform(random)),
                          .typical_p = one_of(1, 1, uniform(random)),
                          .uniform = uniform(random)});
  }
  return batch;
}

void check_sample(qwell::Isa isa, const Batch& batch, const std::string& name) {
  const std::vector<std::int32_t> ids = draw(isa, batch);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::int32_t expected = expected_id(batch.row(i), batch.rows[i]);
    expect(ids[i] == expected, name + " row " + std::to_string(i) + ": drew " +
                                   std::to_string(ids[i]) + " instead of " +
                                   std::to_string(expected));
  }
}

void check_logprobs(qwell::Isa isa, const Batch& batch, const std::string& name) {
  const std::size_t rows = batch.rows.size();
  const auto top = static_cast<std::size_t>(std::min<std::int64_t>(batch.vocabulary, 20));
  const std::vector<std::int32_t> ids(rows, static_cast<std::int32_t>(batch.vocabulary - 1));
  std::vector<float> given(rows);
  std::vector<float> top_given(rows * top);
  std::vector<std::int32_t> top_ids(rows * top, -1);
  qwell::logprobs(isa, pool(),
                  {.logits = batch.logits.data(),
                   .ids = ids.data(),
                   .logprobs = given.data(),
                   .top_ids = top_ids.data(),
                   .top_logprobs = top_given.data(),
                   .rows = static_cast<std::int64_t>(rows),
                   .vocabulary = batch.vocabulary,
                   .top = static_cast<std::int64_t>(top)});
  for (std::size_t i = 0; i < rows; ++i) {
    const std::vector<float> logits = batch.row(i);
    std::vector<std::int32_t> expected = in_order(logits);
    expected.resize(top);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    const auto close = [&](float logprob, std::int32_t id) {
      const double exact = logits[static_cast<std::size_t>(id)] - std::log(sum);
      return std::abs(logprob - exact) <= 0x1p-23 * std::abs(exact) + 1e-12;
    };
    bool all_close = close(given[i], ids[i]);
    for (std::size_t j = 0; j < top; ++j) {
      all_close = all_close && close(top_given[i * top + j], expected[j]);
    }
    const auto first = top_ids.begin() + static_cast<std::ptrdiff_t>(i * top);
    expect(all_close && std::equal(expected.begin(), expected.end(), first),
           name + " row " + std::to_string(i) + ": wrong log-probabilities or ids");
  }
}

// Whatever the logits and parameters, ids are ids.
void check_range(qwell::Isa isa, std::mt19937& random) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const float special : {kInfinity, -kInfinity, static_cast<float>(kNan), 3e38F, -3e38F}) {
    for (const std::uint32_t share : {1U, 2U, 50U}) {
      Batch batch = random_batch(700, false, random);
      for (float& logit : batch.logits) logit = random() % share == 0 ? special : logit;
      batch.rows[0].temperature = kNan;
      batch.rows[1].top_p = kNan;
      batch.rows[2].min_p = kNan;
      batch.rows[3].uniform = kNan;
      batch.rows[4].typical_p = kNan;
      batch.rows[5].min_p = 7;
      batch.rows[6].top_p = -1;
      batch.rows[7].top_k = -1;
      batch.rows[8].temperature = 1e-310;
      batch.rows[9].temperature = 1e300;
      for (const std::int32_t id : draw(isa, batch)) {
        expect(id >= 0 && id < batch.vocabulary,
               std::string(qwell::isa_name(isa)) + ": drew " + std::to_string(id));
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  for (const qwell::Isa isa : qwell::runnable_isas()) {
    for (const std::int64_t vocabulary : {1, 2, 100, 127, 128, 129, 300, 4096, 4097, 9000}) {
      for (const bool ties : {false, true}) {
        const Batch batch = random_batch(vocabulary, ties, random);
        const std::string name =
            std::string(qwell::isa_name(isa)) + " " + std::to_string(vocabulary);
        check_sample(isa, batch, name);
        check_logprobs(isa, batch, name);
      }
    }
    check_range(isa, random);
  }
  return report();
}
