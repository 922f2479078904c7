// Compiled once per instruction set; QWELL_ISA names the set and the namespace.

#include "linear.h"

#include <utility>

#include "linear_formats.h"
#include "unroll.h"

namespace qwell::QWELL_ISA {
namespace {

// Panels whose weights stay in the cache while all tiles pass by.
constexpr std::int64_t kCachedPanels = 4;

// Adds the bias and writes the elements of one row in one panel, fewer than 16 in the last. Inlined
// for the sake of the sums: an array that anything points to is kept in memory.
[[gnu::always_inline]] inline void finish(const LinearCall& call, std::int64_t row, std::int64_t panel,
            const Vec (&sums)[kVectors]) {
  const std::int64_t first = panel * kPanelRows;
  const std::int64_t left = call.outputs - first;
  const float* bias = call.bias != nullptr ? call.bias + first : nullptr;
  float* y = call.y + row * call.outputs + first;
  if (left >= kPanelRows) {
    unroll<kVectors>([&](auto v) QWELL_INLINE {
      constexpr int lane = v * Vec::width;
      store(y + lane, bias != nullptr ? sums[v] + load(bias + lane) : sums[v]);
    });
    return;
  }
  float lanes[kPanelRows];
  for (int v = 0; v < kVectors; ++v) store(lanes + v * Vec::width, sums[v]);
  for (int i = 0; i < left; ++i) y[i] = bias != nullptr ? lanes[i] + bias[i] : lanes[i];
}

// One tile of `Tokens` rows times `Panels` panels, their sums in registers all along.
template <class Format, int Panels, int Tokens>
void multiply_tile(const LinearCall& call, std::int64_t row, std::int64_t panel,
                   const std::uint8_t* input) {
  const std::int64_t stride = panel_bytes(call.format, call.columns);
  const auto* weights = static_cast<const std::uint8_t*>(call.weight) + panel * stride;
  Vec sums[Panels][Tokens][kVectors];
  unroll<Panels>([&](auto p) QWELL_INLINE {
    unroll<Tokens>([&](auto t) QWELL_INLINE {
      unroll<kVectors>([&](auto v) QWELL_INLINE { sums[p][t][v] = splat(0.0F); });
    });
  });
  const std::int64_t steps = (call.columns + Format::kColumns - 1) / Format::kColumns;
  for (std::int64_t i = 0; i < steps; ++i) {
    unroll<Panels>([&](auto p) QWELL_INLINE {
      Format::template add<Tokens>(weights + p * stride, input, sums[p]);
    });
    weights += Format::kBytes;
    input += Format::kInputBytes * Tokens;
  }
  unroll<Panels>([&](auto p) QWELL_INLINE {
    unroll<Tokens>([&](auto t) QWELL_INLINE { finish(call, row + t, panel + p, sums[p][t]); });
  });
}

using Multiply = void (*)(const LinearCall&, std::int64_t row, std::int64_t panel,
                          const std::uint8_t* input);

// Kernels for a number of rows: for as many panels as keep enough sums in flight, and for one.
struct Tile {
  int panels;
  Multiply several;
  Multiply one;
};

template <class Format, int... T>
constexpr Tile tile_of(int tokens, std::integer_sequence<int, T...>) {
  constexpr Tile tiles[] = {
      {Format::panels(T + 1), multiply_tile<Format, Format::panels(T + 1), T + 1>,
       multiply_tile<Format, 1, T + 1>}...};
  return tiles[tokens - 1];
}

template <class Format>
void multiply(const LinearCall& call, std::int64_t first_panel, std::int64_t panels,
              const std::uint8_t* input) {
  const LinearInput shape = input_of<Format>(call);
  const std::int64_t tiles = linear_tiles(call.rows, shape);
  const std::int64_t end_panel = first_panel + panels;
  for (std::int64_t begin = first_panel; begin < end_panel; begin += kCachedPanels) {
    const std::int64_t end = begin + kCachedPanels < end_panel ? begin + kCachedPanels : end_panel;
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t row = linear_tile_row(call.rows, tiles, i);
      const auto tokens = static_cast<int>(linear_tile_row(call.rows, tiles, i + 1) - row);
      const Tile tile = tile_of<Format>(tokens, std::make_integer_sequence<int, Format::kTokens>{});
      const std::uint8_t* arranged = input + row * shape.row_bytes;
      std::int64_t panel = begin;
      for (; panel + tile.panels <= end; panel += tile.panels) {
        tile.several(call, row, panel, arranged);
      }
      for (; panel < end; ++panel) tile.one(call, row, panel, arranged);
    }
  }
}

}  // namespace

LinearInput linear_input(const LinearCall& call) {
  LinearInput input{};
  with_format(call.format, [&](auto format) { input = input_of<decltype(format)>(call); });
  return input;
}

void arrange_tile(const LinearCall& call, std::int64_t first, int rows, std::uint8_t* out) {
  with_format(call.format, [&](auto format) {
    for (int row = 0; row < rows; ++row) {
      decltype(format)::arrange(call.x + (first + row) * call.columns, call.columns, row, rows,
                                out);
    }
  });
}

void multiply_panels(const LinearCall& call, std::int64_t first_panel, std::int64_t panels,
                     const std::uint8_t* input) {
  with_format(call.format, [&](auto format) {
    multiply<decltype(format)>(call, first_panel, panels, input);
  });
}

}  // namespace qwell::QWELL_ISA
