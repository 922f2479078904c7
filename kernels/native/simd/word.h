#pragma once

#include <cstdint>
#include <cstring>

namespace qwell::QWELL_ISA {
namespace {

inline std::int32_t load_word(const std::uint8_t* from) {
  std::int32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

}  // namespace
}  // namespace qwell::QWELL_ISA
