// embedding of packed and plain tables against the layout as kernels/native/packed.py says it,
// element by element.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "embedding.h"
#include "expect.h"
#include "number_format.h"

namespace {

using qwell::WeightFormat;

constexpr const char* kNames[] = {"f32", "bf16", "f16", "int8", "int4"};

const NumberFormat& number_format(WeightFormat format) {
  return formats[format == WeightFormat::f32 ? 0 : format == WeightFormat::bf16 ? 1 : 2];
}

// Random bytes, of which all make numbers.
struct Table {
  Table(WeightFormat format, bool packed, std::int64_t rows, std::int64_t width,
        std::mt19937& random)
      : format(format),
        packed(packed),
        rows(rows),
        width(width),
        bytes(static_cast<std::size_t>(packed ? qwell::panels(rows) * panel_size()
                                              : rows * width * number_format(format).bytes)) {
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  }

  std::int64_t panel_size() const { return qwell::panel_bytes(format, width); }

  double number(std::int64_t place, const NumberFormat& as) const {
    std::uint32_t bits = 0;  // little-endian, as are all processors that qwell runs on
    std::memcpy(&bits, bytes.data() + place, static_cast<std::size_t>(as.bytes));
    return as.decode(bits);
  }

  int byte(std::int64_t place) const { return bytes[static_cast<std::size_t>(place)]; }

  double at(std::int64_t row, std::int64_t k) const {
    const NumberFormat& as = number_format(format);
    if (!packed) return number((row * width + k) * as.bytes, as);
    const std::int64_t panel = row / 16 * panel_size();
    const std::int64_t r = row % 16;
    switch (format) {
      case WeightFormat::f32:
      case WeightFormat::f16:
        return number(panel + (k * 16 + r) * as.bytes, as);
      case WeightFormat::bf16:
        return number(panel + ((k / 2 * 16 + r) * 2 + k % 2) * 2, as);
      case WeightFormat::int8: {
        const std::int64_t group = panel + k / 32 * (16 * 2 + 8 * 16 * 4);
        const int code = byte(group + 32 + (k % 32 / 4 * 16 + r) * 4 + k % 4);
        return number(group + 2 * r, formats[2]) * (code - 128);
      }
      case WeightFormat::int4: {
        const std::int64_t group = panel + k / 32 * (16 * 2 + 4 * 16 * 4);
        const int both = byte(group + 32 + (k % 16 / 4 * 16 + r) * 4 + k % 4);
        return number(group + 2 * r, formats[2]) * ((k % 32 < 16 ? both & 15 : both >> 4) - 8);
      }
    }
    return 0;
  }

  WeightFormat format;
  bool packed;
  std::int64_t rows;
  std::int64_t width;
  std::vector<std::uint8_t> bytes;
};

void check(const Table& table, std::mt19937& random) {
  static qwell::Pool pool(2);
  std::vector<std::int32_t> ids(23);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random() % table.rows);
  std::vector<float> y(ids.size() * static_cast<std::size_t>(table.width), -12345.0F);
  qwell::embedding(pool, {.ids = ids.data(),
                          .table = table.bytes.data(),
                          .y = y.data(),
                          .rows = static_cast<std::int64_t>(ids.size()),
                          .width = table.width,
                          .format = table.format,
                          .packed = table.packed});
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const auto width = static_cast<std::size_t>(table.width);
    const double expected = table.at(ids[i / width], static_cast<std::int64_t>(i % width));
    wrong += y[i] != expected && !(std::isnan(y[i]) && std::isnan(expected));
  }
  expect(wrong == 0, std::string(table.packed ? "packed " : "plain ") +
                         kNames[static_cast<int>(table.format)] + " [" +
                         std::to_string(table.rows) + ", " + std::to_string(table.width) +
                         "]: " + std::to_string(wrong) + " are wrong");
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  for (const std::int64_t rows : {1, 16, 17, 50}) {
    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16}) {
      for (const std::int64_t width : {1, 2, 3, 31, 64, 1000}) {
        for (const bool packed : {false, true}) {
          check(Table(format, packed, rows, width, random), random);
        }
      }
    }
    for (const WeightFormat format : {WeightFormat::int8, WeightFormat::int4}) {
      for (const std::int64_t width : {32, 64, 1024}) {
        check(Table(format, true, rows, width, random), random);
      }
    }
  }
  return report();
}
