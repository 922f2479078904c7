#pragma once

#include <cstdint>
#include <cstring>

namespace qwell::QWELL_ISA {
namespace {

struct Codes {
  std::uint8_t lane[Vec::width][4];
};

inline Codes load_codes(const std::uint8_t* from) {
  Codes codes;
  std::memcpy(codes.lane, from, sizeof(codes.lane));
  return codes;
}
inline Codes low_halves(Codes a) {
  for (auto& lane : a.lane) {
    for (std::uint8_t& code : lane) code &= 0x0F;
  }
  return a;
}
inline Codes high_halves(Codes a) {
  for (auto& lane : a.lane) {
    for (std::uint8_t& code : lane) code >>= 4;
  }
  return a;
}

struct UnsignedDot : ByteQuads {
  struct Sum {
    std::int32_t lane[Vec::width];
  };
  using Weights = Codes;
  static Weights prepare(Codes codes) { return codes; }
  static Sum begin(const std::int32_t* zero) {
    Sum sum;
    for (std::int32_t& lane : sum.lane) lane = *zero;
    return sum;
  }
  static void add(Sum& sum, const Weights& codes, std::int32_t quad) {
    std::int8_t x[4];
    std::memcpy(x, &quad, sizeof(x));
    for (int i = 0; i < Vec::width; ++i) {
      for (int j = 0; j < 4; ++j) sum.lane[i] += codes.lane[i][j] * x[j];
    }
  }
  static Vec end(const Sum& sum, const std::int32_t*) {
    Vec out;
    for (int i = 0; i < Vec::width; ++i) out.lane[i] = static_cast<float>(sum.lane[i]);
    return out;
  }
};

using Int8Dot = UnsignedDot;
using Int4Dot = UnsignedDot;

inline constexpr int kIntTokens = 2;

inline Vec of_pairs(const std::uint8_t* from, int place) {
  Vec out;
  for (int i = 0; i < Vec::width; ++i) {
    BFloat16 pair[2];
    std::memcpy(pair, from + 4 * i, sizeof(pair));
    out.lane[i] = widen(pair[place]);
  }
  return out;
}
inline Vec even_of_pairs(const std::uint8_t* from) { return of_pairs(from, 0); }
inline Vec odd_of_pairs(const std::uint8_t* from) { return of_pairs(from, 1); }

}  // namespace
}  // namespace qwell::QWELL_ISA
