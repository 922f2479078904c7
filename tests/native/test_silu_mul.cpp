// silu_mul on every instruction set of this machine against its definition in double precision.

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "expect.h"
#include "silu_mul.h"

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> run(qwell::Isa isa, const std::vector<float>& gate_up, std::int64_t width) {
  static qwell::Pool pool(2);
  const auto rows = static_cast<std::int64_t>(gate_up.size()) / (2 * width);
  std::vector<float> y(gate_up.size() / 2, kNan);
  qwell::silu_mul(isa, pool,
                  {.gate_up = gate_up.data(), .y = y.data(), .rows = rows, .width = width});
  return y;
}

void check(qwell::Isa isa, std::int64_t rows, std::int64_t width, float size,
           std::mt19937& random) {
  std::normal_distribution<float> normal(0.0F, size);
  std::vector<float> gate_up(static_cast<std::size_t>(rows * 2 * width));
  for (float& x : gate_up) x = normal(random);
  const std::vector<float> y = run(isa, gate_up, width);
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t column = i % static_cast<std::size_t>(width);
    const std::size_t place = 2 * (i - column) + column;
    const double gate = gate_up[place];
    const double up = gate_up[place + static_cast<std::size_t>(width)];
    const double expected = gate / (1 + std::exp(-gate)) * up;
    // Six roundings; below the normal numbers errors are absolute.
    const double tolerance = 6 * 0x1p-23 * std::abs(expected) + 0x1p-119 * (1 + std::abs(up));
    wrong += !(std::abs(y[i] - expected) <= tolerance);
  }
  expect(wrong == 0, std::string(qwell::isa_name(isa)) + " [" + std::to_string(rows) + ", 2 * " +
                         std::to_string(width) + "]: " + std::to_string(wrong) + " are wrong");
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  for (const qwell::Isa isa : qwell::runnable_isas()) {
    for (std::int64_t width = 1; width <= 70; ++width) check(isa, 3, width, 3.0F, random);
    for (const float size : {1e-3F, 1.0F, 60.0F, 1e6F}) {
      for (const std::int64_t width : {1000, 8192, 8193, 20000}) {
        check(isa, 5, width, size, random);
      }
    }
  }
  return report();
}
