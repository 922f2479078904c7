// linear on every instruction set of this machine: buffers of exactly the size it may touch, a
// row's bits alone and in a batch, and the product itself.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "embedding.h"
#include "expect.h"
#include "linear.h"
#include "number_format.h"

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

// Bytes below 0x3C are finite floats and halves in every place; codes are of any kind.
Case random_case(WeightFormat format, std::int64_t rows, std::int64_t columns,
                 std::int64_t outputs, std::mt19937& random) {
  std::normal_distribution<float> normal;
  Case c{.format = format, .rows = rows, .columns = columns, .outputs = outputs};
  c.x.resize(size(rows * columns));
  c.bias.resize(size(outputs));
  for (float& x : c.x) x = normal(random);
  for (float& b : c.bias) b = normal(random);
  c.weight.resize(size(qwell::panels(outputs) * qwell::panel_bytes(format, columns)));
  const std::int64_t group_bytes = qwell::panel_bytes(format, qwell::kGroup);
  for (std::size_t i = 0; i < c.weight.size(); ++i) {
    const bool code = qwell::has_groups(format) && i % size(group_bytes) >= 2 * qwell::kPanelRows;
    c.weight[i] = static_cast<std::uint8_t>(code ? 1 + random() % 0xFF : random() % 0x3C);
  }
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

// The weights as numbers, [outputs, columns]: test_embedding.cpp holds embedding to the layout.
std::vector<float> decoded_weight(const Case& c) {
  static qwell::Pool pool(1);
  std::vector<std::int32_t> ids;
  for (std::int32_t row = 0; row < c.outputs; ++row) ids.push_back(row);
  std::vector<float> weight(size(c.outputs * c.columns));
  qwell::embedding(pool,
                   {.ids = ids.data(),
                    .table = c.weight.data(),
                    .y = weight.data(),
                    .rows = c.outputs,
                    .width = c.columns,
                    .format = c.format,
                    .packed = true});
  return weight;
}

// x as its products see it: rounded to integers in formats that have scales, and to bfloat16 for
// its dot product.
std::vector<double> rounded_input(qwell::Isa isa, const Case& c) {
  std::vector<double> x(c.x.begin(), c.x.end());
  if (c.format == WeightFormat::bf16 && isa == qwell::Isa::avx512_bf16) {
    for (double& value : x) value = formats[1].round(value);
  }
  if (!qwell::has_groups(c.format)) return x;
  for (std::size_t first = 0; first < x.size(); first += size(qwell::kGroup)) {
    float largest = 0;
    for (std::size_t i = 0; i < size(qwell::kGroup); ++i) {
      largest = std::max(largest, std::abs(c.x[first + i]));
    }
    for (std::size_t i = 0; i < size(qwell::kGroup); ++i) {
      const float code = std::nearbyint(c.x[first + i] * (127.0F / largest));
      x[first + i] = static_cast<double>(code) * static_cast<double>(largest / 127.0F);
    }
  }
  return x;
}

void check_values(qwell::Isa isa, const Case& c) {
  const std::vector<float> y = run(isa, c, 0, c.rows);
  const std::vector<double> x = rounded_input(isa, c);
  const std::vector<float> weight = decoded_weight(c);
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < c.rows; ++row) {
    for (std::int64_t i = 0; i < c.outputs; ++i) {
      double exact = static_cast<double>(c.bias[size(i)]);
      double magnitude = std::abs(exact);
      for (std::int64_t k = 0; k < c.columns; ++k) {
        const double product = x[size(row * c.columns + k)] *
                               static_cast<double>(weight[size(i * c.columns + k)]);
        exact += product;
        magnitude += std::abs(product);
      }
      const double error = std::abs(static_cast<double>(y[size(row * c.outputs + i)]) - exact);
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
          check_values(isa, c);
        }
      }
    }
  }
  return report();
}
