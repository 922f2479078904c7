// linear on every instruction set of this machine: buffers of exactly the size it may touch, a
// row's bits alone and in a batch, and in float32 the product itself.

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "expect.h"
#include "linear.h"

namespace {

using qwell::WeightFormat;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  WeightFormat format;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t outputs;
  std::vector<float> x = {};
  std::vector<float> bias = {};
  std::vector<std::uint8_t> weight = {};

  std::string name(qwell::Isa isa) const {
    return std::string(qwell::isa_name(isa)) + " format " +
           std::to_string(static_cast<int>(format)) + " [" + std::to_string(rows) + ", " +
           std::to_string(columns) + "] to " + std::to_string(outputs);
  }
};

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

// Bytes below 0x3C are finite floats and halves in every place, and codes of any kind.
Case random_case(WeightFormat format, std::int64_t rows, std::int64_t columns,
                 std::int64_t outputs, std::mt19937& random) {
  std::normal_distribution<float> normal;
  Case c{.format = format, .rows = rows, .columns = columns, .outputs = outputs};
  c.x.resize(size(rows * columns));
  c.bias.resize(size(outputs));
  for (float& x : c.x) x = normal(random);
  for (float& b : c.bias) b = normal(random);
  c.weight.resize(size(qwell::panels(outputs) * qwell::panel_bytes(format, columns)));
  for (std::uint8_t& byte : c.weight) byte = static_cast<std::uint8_t>(random() % 0x3C);
  return c;
}

std::vector<float> run(qwell::Isa isa, const Case& c, std::int64_t first, std::int64_t rows) {
  static qwell::Pool pool(2);
  std::vector<float> y(size(rows * c.outputs), kNan);
  qwell::linear(isa, pool,
                {.x = c.x.data() + first * c.columns,
                 .weight = c.weight.data(),
                 .bias = c.bias.data(),
                 .y = y.data(),
                 .rows = rows,
                 .columns = c.columns,
                 .outputs = c.outputs,
                 .format = c.format});
  return y;
}

void check_rows(qwell::Isa isa, const Case& c) {
  const std::vector<float> all = run(isa, c, 0, c.rows);
  bool same = true;
  for (std::int64_t row = 0; row < c.rows; ++row) {
    const std::vector<float> alone = run(isa, c, row, 1);
    for (std::int64_t i = 0; i < c.outputs; ++i) {
      same = same && alone[size(i)] == all[size(row * c.outputs + i)];
    }
  }
  expect(same, c.name(isa) + ": a row's bits depend on its batch");
}

void check_values(qwell::Isa isa, const Case& c) {
  const std::vector<float> y = run(isa, c, 0, c.rows);
  const auto* weight = reinterpret_cast<const float*>(c.weight.data());
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < c.rows; ++row) {
    for (std::int64_t i = 0; i < c.outputs; ++i) {
      double exact = c.bias[size(i)];
      double magnitude = std::abs(exact);
      for (std::int64_t k = 0; k < c.columns; ++k) {
        const std::int64_t place = (i / qwell::kPanelRows * c.columns + k) * qwell::kPanelRows;
        const double product = static_cast<double>(c.x[size(row * c.columns + k)]) *
                               static_cast<double>(weight[place + i % qwell::kPanelRows]);
        exact += product;
        magnitude += std::abs(product);
      }
      const double error = std::abs(y[size(row * c.outputs + i)] - exact);
      wrong += !(error <= static_cast<double>(2 * c.columns + 2) * 0x1p-24 * magnitude);
    }
  }
  expect(wrong == 0, c.name(isa) + ": " + std::to_string(wrong) + " elements are wrong");
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  for (const qwell::Isa isa : qwell::runnable_isas()) {
    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16,
                                      WeightFormat::int8, WeightFormat::int4}) {
      for (const std::int64_t rows : {1, 2, 3, 5, 7, 12, 13, 26}) {
        for (const std::int64_t outputs : {1, 16, 17, 75, 150}) {
          const std::int64_t columns = qwell::has_groups(format) ? 32 * (rows % 3 + 1) : 31 + rows;
          const Case c = random_case(format, rows, columns, outputs, random);
          check_rows(isa, c);
          if (format == WeightFormat::f32) check_values(isa, c);
        }
      }
    }
  }
  return report();
}
