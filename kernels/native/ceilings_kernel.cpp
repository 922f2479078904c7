#include "ceilings.h"
#include "simd/simd.h"

namespace qwell::QWELL_ISA {
namespace {

// Memory answers several streams of a thread faster than one, and eight no faster than four.
constexpr int kStreams = 4;
// More than latency times throughput of any core's FMA units (5 cycles, two a cycle), and few
// enough for 16 registers together with a and b.
constexpr int kChains = 12;

float lanes(Vec value) {
  float lane[Vec::width];
  store(lane, value);
  float sum = 0.0F;
  for (float one : lane) sum += one;
  return sum;
}

}  // namespace

float sum(const float* data, std::int64_t count) {
  const std::int64_t stream = count / (kStreams * Vec::width) * Vec::width;
  Vec sums[kStreams];
  for (Vec& one : sums) one = splat(0.0F);
  for (std::int64_t i = 0; i < stream; i += Vec::width) {
    for (int s = 0; s < kStreams; ++s) sums[s] = sums[s] + load(data + s * stream + i);
  }
  float total = lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (std::int64_t i = kStreams * stream; i < count; ++i) total += data[i];
  return total;
}

std::int64_t multiply_add(std::int64_t steps, float* result) {
  // Fixed point 1: values stay where arithmetic is fast.
  const Vec a = splat(0.5F);
  const Vec b = splat(0.5F);
  Vec chains[kChains];
  for (int c = 0; c < kChains; ++c) chains[c] = splat(1.0F + static_cast<float>(c));
  for (std::int64_t i = 0; i < steps; ++i) {
    for (Vec& chain : chains) chain = fma(chain, a, b);
  }
  Vec total = splat(0.0F);
  for (const Vec& chain : chains) total = total + chain;
  *result = lanes(total);
  return steps * kChains * Vec::width * 2;
}

}  // namespace qwell::QWELL_ISA
