// rms_norm on every instruction set of this machine against its definition in double precision.

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "expect.h"
#include "number_format.h"
#include "rms_norm.h"

namespace {

constexpr float kEps = 1e-6F;
constexpr std::uint8_t kPoison = 0xFF;  // NaN in every format

// Elements of one format, starting one element after an aligned address.
class Buffer {
 public:
  Buffer(const NumberFormat& format, std::int64_t size)
      : format_(format), bytes_(static_cast<std::size_t>((size + 1) * format.bytes), kPoison) {}

  void* data() { return bytes_.data() + format_.bytes; }
  void* at(std::int64_t index) { return bytes_.data() + (index + 1) * format_.bytes; }

  std::uint32_t bits(std::int64_t index) {
    std::uint32_t bits = 0;  // little-endian, as are all processors that qwell runs on
    std::memcpy(&bits, at(index), static_cast<std::size_t>(format_.bytes));
    return bits;
  }
  void set_bits(std::int64_t index, std::uint32_t bits) {
    std::memcpy(at(index), &bits, static_cast<std::size_t>(format_.bytes));
  }
  double value(std::int64_t index) { return format_.decode(bits(index)); }

  bool operator==(const Buffer& other) const { return bytes_ == other.bytes_; }

 private:
  NumberFormat format_;
  std::vector<std::uint8_t> bytes_;
};

struct Case {
  Case(const NumberFormat& format, std::int64_t rows, std::int64_t width, bool with_residual)
      : format(format),
        rows(rows),
        width(width),
        with_residual(with_residual),
        x(format, rows * width),
        residual(format, rows * width),
        weight(format, width) {}

  std::string name(qwell::Isa isa) const {
    return std::string(qwell::isa_name(isa)) + " " + format.name + " [" + std::to_string(rows) +
           ", " + std::to_string(width) + "]" + (with_residual ? " with residual" : "");
  }

  NumberFormat format;
  std::int64_t rows;
  std::int64_t width;
  bool with_residual;
  Buffer x;
  Buffer residual;
  Buffer weight;
};

struct Result {
  Buffer y;
  Buffer s;
};

Result run(qwell::Isa isa, Case& c, std::int64_t first_row, std::int64_t rows) {
  Result result{Buffer(c.format, rows * c.width), Buffer(c.format, rows * c.width)};
  const std::int64_t start = first_row * c.width;
  static qwell::Pool pool(2);
  qwell::rms_norm(isa, pool, {.x = c.x.at(start),
                        .residual = c.with_residual ? c.residual.at(start) : nullptr,
                        .weight = c.weight.data(),
                        .y = result.y.data(),
                        .s = c.with_residual ? result.s.data() : nullptr,
                        .rows = rows,
                        .width = c.width,
                        .eps = kEps,
                        .dtype = c.format.dtype});
  return result;
}

Case random_case(const NumberFormat& format, std::int64_t rows, std::int64_t width,
                 bool with_residual, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Case c(format, rows, width, with_residual);
  const auto draw = [&] { return format.encode(format.round(normal(random))); };
  for (std::int64_t i = 0; i < rows * width; ++i) c.x.set_bits(i, draw());
  for (std::int64_t i = 0; i < rows * width; ++i) c.residual.set_bits(i, draw());
  for (std::int64_t i = 0; i < width; ++i) c.weight.set_bits(i, draw());
  return c;
}

// What is added is exact up to its rounding, so the stored sum must be equal to the bit.
double exact_sum(Case& c, std::int64_t index) {
  const double x = c.x.value(index);
  if (!c.with_residual) return x;
  return c.format.round(static_cast<float>(x + c.residual.value(index)));
}

// The fp32 error of the normalised value, relative: width / 32 additions in a lane and 5 between
// lanes, halved by the root, the mean, the root, its inverse and the product, with a margin of 2.
double normalised_error(const Case& c) {
  return (static_cast<double>(c.width) / 32 + 16) * 0x1p-24;
}

// y must be what the definition gives for a normalised value that is off by at most its fp32
// error: for 16 bits nearly always one number, for float32 a few.
bool allowed(const Case& c, double y, double sum, double rstd, double weight) {
  const double error = normalised_error(c);
  const double a = c.format.round(c.format.round(sum * rstd * (1 - error)) * weight);
  const double b = c.format.round(c.format.round(sum * rstd * (1 + error)) * weight);
  return std::min(a, b) <= y && y <= std::max(a, b);
}

void check_values(Case& c, qwell::Isa isa, Result& result) {
  std::int64_t wrong_y = 0;
  std::int64_t wrong_s = 0;
  for (std::int64_t row = 0; row < c.rows; ++row) {
    const std::int64_t start = row * c.width;
    double squares = 0;
    for (std::int64_t i = start; i < start + c.width; ++i) {
      squares += exact_sum(c, i) * exact_sum(c, i);
    }
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(c.width) + kEps);
    for (std::int64_t i = start; i < start + c.width; ++i) {
      const double sum = exact_sum(c, i);
      wrong_y += !allowed(c, result.y.value(i), sum, rstd, c.weight.value(i - start));
      wrong_s += c.with_residual && result.s.value(i) != sum;
    }
  }
  expect(wrong_y == 0, c.name(isa) + ": " + std::to_string(wrong_y) + " elements of y are wrong");
  expect(wrong_s == 0, c.name(isa) + ": " + std::to_string(wrong_s) + " elements of s are wrong");
}

void check_case(Case& c) {
  Result portable = run(qwell::Isa::portable, c, 0, c.rows);
  for (const qwell::Isa isa : qwell::runnable_isas()) {
    Result result = run(isa, c, 0, c.rows);
    check_values(c, isa, result);
    expect(result.y == portable.y && result.s == portable.s,
           c.name(isa) + ": other bits than portable");
    Result alone = run(isa, c, c.rows - 1, 1);
    const auto row_bytes = static_cast<std::size_t>(c.width * c.format.bytes);
    expect(std::memcmp(alone.y.data(), result.y.at((c.rows - 1) * c.width), row_bytes) == 0,
           c.name(isa) + ": a row's bits depend on its batch");
  }
}

bool same_or_nan(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// s must be the sum rounded to nearest even for any bits, infinities and NaN too: every 16-bit
// pattern alone, random pairs, and every pattern beside the largest number.
void check_rounding(const NumberFormat& format, std::mt19937& random) {
  constexpr std::int64_t width = 1 << 16;
  const int unused_bits = 32 - format.bytes * 8;
  const std::uint32_t negative_zero = 0x80000000U >> unused_bits;
  const std::uint32_t infinity = ((1U << format.exponent_bits) - 1U) << format.mantissa_bits;
  Case c(format, 3, width, true);
  for (std::int64_t i = 0; i < width; ++i) {
    const auto pattern = static_cast<std::uint32_t>(i) << (16 - unused_bits);
    c.x.set_bits(i, pattern);
    c.residual.set_bits(i, negative_zero);  // the neutral element: x itself comes back
    c.x.set_bits(width + i, static_cast<std::uint32_t>(random()) >> unused_bits);
    c.residual.set_bits(width + i, static_cast<std::uint32_t>(random()) >> unused_bits);
    c.x.set_bits(2 * width + i, pattern);
    c.residual.set_bits(2 * width + i, infinity - 1);
    c.weight.set_bits(i, format.encode(1.0));
  }
  for (const qwell::Isa isa : qwell::runnable_isas()) {
    Result result = run(isa, c, 0, c.rows);
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < c.rows * width; ++i) {
      wrong += !same_or_nan(result.s.value(i), exact_sum(c, i));
    }
    expect(wrong == 0, c.name(isa) + ": " + std::to_string(wrong) + " sums rounded wrongly");
  }
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  std::vector<std::int64_t> widths;
  for (std::int64_t width = 1; width <= 130; ++width) widths.push_back(width);
  widths.insert(widths.end(), {576, 1024, 4096});
  for (const NumberFormat& format : formats) {
    for (const std::int64_t width : widths) {
      for (const std::int64_t rows : {1, 3, 17}) {
        for (const bool with_residual : {false, true}) {
          Case c = random_case(format, rows, width, with_residual, random);
          check_case(c);
        }
      }
    }
    check_rounding(format, random);
  }
  return report();
}
