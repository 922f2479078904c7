#pragma once

#include <cstdint>
#include <cstring>

namespace qwell::QWELL_ISA {
namespace {

struct LineDot {
  struct Lines {
    std::int8_t line[4][16];
  };
  struct Sum {
    std::int32_t lane[Vec::width];
  };
  static constexpr int kSumRegisters = 1;

  static Lines load(const std::int8_t* from, std::int64_t stride) {
    Lines lines;
    for (int i = 0; i < 4; ++i) std::memcpy(lines.line[i], from + i * stride, 16);
    return lines;
  }
  static Lines load_adjacent(const std::int8_t* from) { return load(from, 16); }

  static void put(std::uint8_t* to, Vec numbers) {
    std::int16_t whole[Vec::width];
    for (int i = 0; i < Vec::width; ++i) whole[i] = static_cast<std::int16_t>(numbers.lane[i]);
    std::memcpy(to, whole, sizeof(whole));
  }

  static Sum begin() { return {}; }

  template <int Register>
  static void add(Sum& sum, const Lines& lines, const std::uint8_t* numbers) {
    std::int16_t number[4];
    std::memcpy(number, numbers, sizeof(number));
    for (int i = 0; i < 4; ++i) {
      const std::int8_t* column = lines.line[i] + Register * Vec::width;
      for (int lane = 0; lane < Vec::width; ++lane) sum.lane[lane] += number[i] * column[lane];
    }
  }

  static Vec end(const Sum& sum, std::int32_t) {
    Vec out;
    for (int lane = 0; lane < Vec::width; ++lane) {
      out.lane[lane] = static_cast<float>(sum.lane[lane]);
    }
    return out;
  }
};

}  // namespace
}  // namespace qwell::QWELL_ISA
