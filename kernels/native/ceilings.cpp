#include "ceilings.h"

#include <algorithm>
#include <atomic>

namespace qwell {
float read_all(Isa isa, Pool& pool, const float* data, std::int64_t count) {
  // Four streams of 1 MiB.
  constexpr std::int64_t kTaskFloats = std::int64_t{1} << 20;
  const auto sum = QWELL_KERNEL(isa, sum);
  std::atomic<float> total{0.0F};
  pool.run((count + kTaskFloats - 1) / kTaskFloats, [&](std::int64_t i) {
    const std::int64_t start = i * kTaskFloats;
    const float part = sum(data + start, std::min(kTaskFloats, count - start));
    float before = total.load();
    while (!total.compare_exchange_weak(before, before + part)) {
    }
  });
  return total.load();
}

double fma_burst(Isa isa, Pool& pool, std::int64_t tasks) {
  const auto multiply_add = QWELL_KERNEL(isa, multiply_add);
  std::atomic<std::int64_t> flops{0};
  pool.run(tasks, [&](std::int64_t) {
    float result;  // asked for, so that the chains are computed
    flops += multiply_add(kBurstSteps, &result);
  });
  return static_cast<double>(flops.load());
}

}  // namespace qwell
