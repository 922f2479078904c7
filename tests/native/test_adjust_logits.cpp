// adjust_logits: rows computed by hand, and neighbours that stay as they are.

#include "adjust_logits.h"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "expect.h"

int main() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr double kBan = -std::numeric_limits<double>::infinity();
  std::vector<float> logits(4 * 6, 2);
  for (std::size_t row = 0; row < 4; ++row) logits[row * 6 + 1] = -2;

  // Row 0 penalises, row 1 lists nothing, row 2 allows two ids, row 3 knows its newest id alone.
  const std::vector<std::int32_t> ids{0, 1, 2, 3, 4, 0, 5};
  const std::vector<std::int32_t> counts{0, 0, 3, -1, -1, -1, -1};
  const std::vector<double> biases{0, 0, 0, 1.5, kBan, 0, -1};
  const std::vector<std::int32_t> cu_ids{0, 5, 5, 7, 7};
  const std::vector<std::int32_t> newest{2, -1, 3, 5};
  const std::vector<double> repetition{2, 2, 1, 1};
  const std::vector<double> presence{0.25, 1, 1, 0.5};
  const std::vector<double> frequency{0.125, 1, 1, 0.25};
  const std::vector<std::int32_t> only_listed{0, 0, 1, 0};
  qwell::Pool pool(2);
  qwell::adjust_logits(pool, {.logits = logits.data(),
                              .ids = ids.data(),
                              .counts = counts.data(),
                              .biases = biases.data(),
                              .cu_ids = cu_ids.data(),
                              .newest = newest.data(),
                              .repetition_penalty = repetition.data(),
                              .presence_penalty = presence.data(),
                              .frequency_penalty = frequency.data(),
                              .only_listed = only_listed.data(),
                              .rows = 4,
                              .vocabulary = 6});
  const std::vector<float> expected{
      1,  -4,         0.25,       3.5,        -kInfinity, 2,     // 2 / 2 - 4 * 0.125 - 0.25
      2,  -2,         2,          2,          2,          2,     //
      2,  -kInfinity, -kInfinity, -kInfinity, -kInfinity, 1,     //
      2,  -2,         2,          2,          2,          1.25,  // 2 - 0.25 - 0.5
  };
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expect(logits[i] == expected[i],
           "logit " + std::to_string(i) + " became " + std::to_string(logits[i]));
  }
  return report();
}
