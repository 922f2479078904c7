// pack on every instruction set of this machine: nothing outside its buffers is touched, and all
// sets write the same bytes. What the bytes must be is tests/unit/kernels/test_pack_native.py's.
// Prints the first failures and ends with "N passed, N failed"; the exit status tells as well.

#include "pack.h"

#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint8_t kPoison = 0xA5;

int passed = 0;
int failed = 0;

void expect(bool holds, const std::string& what) {
  if (holds) {
    ++passed;
  } else if (++failed <= 20) {
    std::printf("FAILED %s\n", what.c_str());
  }
}

// Small multiples of a power of two, which every float format holds.
Bytes random_rows(qwell::DType dtype, std::int64_t count, std::mt19937& random) {
  Bytes bytes;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(static_cast<int>(random() % 255) - 127) / 64;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (dtype == qwell::DType::bfloat16) bits >>= 16;
    if (dtype == qwell::DType::float16) {
      const std::uint32_t sign = bits >> 16 & 0x8000U;
      const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
      bits = magnitude == 0 ? sign : sign | ((magnitude >> 13) - ((127U - 15U) << 10));
    }
    const auto* from = reinterpret_cast<const std::uint8_t*>(&bits);
    bytes.insert(bytes.end(), from, from + qwell::element_bytes(dtype));
  }
  return bytes;
}

void check(qwell::WeightFormat format, const std::vector<std::int64_t>& rows, std::int64_t columns,
           std::mt19937& random) {
  static qwell::Pool pool(2);
  constexpr qwell::DType dtypes[] = {qwell::DType::float32, qwell::DType::bfloat16,
                                     qwell::DType::float16};
  std::vector<Bytes> stored;
  std::vector<qwell::StoredRows> parts;
  std::int64_t total = 0;
  for (const std::int64_t count : rows) {
    const qwell::DType dtype = dtypes[stored.size() % 3];
    stored.push_back(random_rows(dtype, count * columns, random));
    parts.push_back({nullptr, count, dtype});
    total += count;
  }
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i].data = stored[i].data();

  const std::int64_t bytes = qwell::panels(total) * qwell::panel_bytes(format, columns);
  const std::string name = "format " + std::to_string(static_cast<int>(format)) + " [" +
                           std::to_string(total) + ", " + std::to_string(columns) + "] on ";
  Bytes first;
  for (const qwell::Isa isa : qwell::runnable_isas()) {
    // Memory of just this size: a sanitizer sees what is written beside it.
    Bytes packed(static_cast<std::size_t>(bytes), kPoison);
    const bool fits = qwell::pack(isa, pool, format, parts, columns, packed.data());
    expect(fits, name + qwell::isa_name(isa) + ": refused");
    if (first.empty()) first = packed;
    expect(packed == first, name + qwell::isa_name(isa) + ": other bytes");
  }
}

}  // namespace

int main() {
  std::mt19937 random(20240607);
  using qwell::WeightFormat;
  const std::vector<std::vector<std::int64_t>> row_counts = {{1}, {16}, {17, 5}, {3, 30, 8}};
  for (const auto& rows : row_counts) {
    for (const auto format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16}) {
      for (std::int64_t columns = 1; columns <= 70; ++columns) check(format, rows, columns, random);
    }
    for (const auto format : {WeightFormat::int8, WeightFormat::int4}) {
      for (std::int64_t columns = 32; columns <= 256; columns += 32) {
        check(format, rows, columns, random);
      }
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
