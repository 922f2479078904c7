#pragma once

#include <cstdint>

namespace qwell {

// Layout of packed weights, said in full in kernels/native/packed.py: panels of 16 rows, in each
// of which the columns follow one another.
enum class WeightFormat { f32, bf16, f16, int8, int4 };

constexpr std::int64_t kPanelRows = 16;

// Columns that share the scales of a row, in the formats that have scales.
constexpr std::int64_t kGroup = 32;

static constexpr bool has_groups(WeightFormat format) {
  return format == WeightFormat::int8 || format == WeightFormat::int4;
}

// Bytes of `columns` columns of a panel; of whole groups where the format has groups, and of
// whole pairs in bf16.
static constexpr std::int64_t panel_bytes(WeightFormat format, std::int64_t columns) {
  const std::int64_t scales = columns / kGroup * kPanelRows * 2;
  switch (format) {
    case WeightFormat::f32:
      return columns * kPanelRows * 4;
    case WeightFormat::bf16:
      return (columns + 1) / 2 * kPanelRows * 4;
    case WeightFormat::f16:
      return columns * kPanelRows * 2;
    case WeightFormat::int8:
      return columns * kPanelRows + scales;
    case WeightFormat::int4:
      return columns * kPanelRows / 2 + scales;
  }
  return 0;
}

static constexpr std::int64_t panels(std::int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

}  // namespace qwell
