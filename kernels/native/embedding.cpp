#include "embedding.h"

#include <algorithm>
#include <cstring>

#include "widen.h"

namespace qwell {
namespace {

template <class T>
T read(const std::uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// y[0], y[step], .. of [0, width) from elements that are `stride` elements apart.
template <class T>
void widen_columns(const std::uint8_t* from, std::int64_t stride, float* y, std::int64_t width,
                   std::int64_t step = 1) {
  const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t k = 0; k < width; k += step, from += bytes) y[k] = widen(read<T>(from));
}

// Bytes of a line of codes, of which each row of the panel has four.
constexpr std::int64_t kLine = 4 * kPanelRows;

// 32 columns of a row. Codes times their scale need 19 bits: the products are exact.
void dequantize_int8(const std::uint8_t* codes, float scale, float* y) {
  for (std::int64_t i = 0; i < kGroup / 4; ++i) {
    for (std::int64_t j = 0; j < 4; ++j) {
      y[4 * i + j] = scale * static_cast<float>(codes[i * kLine + j] - 128);
    }
  }
}

void dequantize_int4(const std::uint8_t* codes, float scale, float* y) {
  for (std::int64_t i = 0; i < kGroup / 8; ++i) {
    for (std::int64_t j = 0; j < 4; ++j) {
      const int both = codes[i * kLine + j];
      y[4 * i + j] = scale * static_cast<float>((both & 0xF) - 8);
      y[kGroup / 2 + 4 * i + j] = scale * static_cast<float>((both >> 4) - 8);
    }
  }
}

// Row `r` of a panel.
void unpack_row(WeightFormat format, const std::uint8_t* panel, std::int64_t r, float* y,
                std::int64_t width) {
  switch (format) {
    case WeightFormat::f32:
      return widen_columns<float>(panel + 4 * r, kPanelRows, y, width);
    case WeightFormat::f16:
      return widen_columns<Float16>(panel + 2 * r, kPanelRows, y, width);
    case WeightFormat::bf16:  // a word holds two columns
      widen_columns<BFloat16>(panel + 4 * r, 2 * kPanelRows, y, width, 2);
      return widen_columns<BFloat16>(panel + 4 * r + 2, 2 * kPanelRows, y + 1, width - 1, 2);
    case WeightFormat::int8:
    case WeightFormat::int4:
      for (std::int64_t k = 0; k < width; k += kGroup) {
        const std::uint8_t* group = panel + panel_bytes(format, k);
        const float scale = widen(read<Float16>(group + 2 * r));
        const std::uint8_t* codes = group + 2 * kPanelRows + 4 * r;
        format == WeightFormat::int8 ? dequantize_int8(codes, scale, y + k)
                                     : dequantize_int4(codes, scale, y + k);
      }
  }
}

void copy_row(const EmbeddingCall& call, std::int64_t id, float* y) {
  const auto* table = static_cast<const std::uint8_t*>(call.table);
  if (call.packed) {
    const std::uint8_t* panel = table + id / kPanelRows * panel_bytes(call.format, call.width);
    return unpack_row(call.format, panel, id % kPanelRows, y, call.width);
  }
  if (call.format == WeightFormat::f32) {
    const auto bytes = static_cast<std::size_t>(call.width) * sizeof(float);
    std::memcpy(y, table + static_cast<std::size_t>(id) * bytes, bytes);
    return;
  }
  const std::uint8_t* row = table + id * call.width * 2;
  call.format == WeightFormat::bf16 ? widen_columns<BFloat16>(row, 1, y, call.width)
                                    : widen_columns<Float16>(row, 1, y, call.width);
}

}  // namespace

void embedding(Pool& pool, const EmbeddingCall& call) {
  // Below this a thread takes longer to wake than to copy.
  constexpr std::int64_t kTaskElements = 8192;
  const std::int64_t task_rows = std::max<std::int64_t>(kTaskElements / call.width, 1);
  pool.run((call.rows + task_rows - 1) / task_rows, [&](std::int64_t i) {
    const std::int64_t end = std::min((i + 1) * task_rows, call.rows);
    for (std::int64_t row = i * task_rows; row < end; ++row) {
      copy_row(call, call.ids[row], call.y + row * call.width);
    }
  });
}

}  // namespace qwell
