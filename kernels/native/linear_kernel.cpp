// Compiled once per instruction set; QWELL_ISA names the set and the namespace.

#include "linear.h"

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

template <class Format, int Tokens>
constexpr Tile tile_of() {
  constexpr int panels = Format::panels(Tokens);
  return {panels, multiply_tile<Format, panels, Tokens>, multiply_tile<Format, 1, Tokens>};
}

// For the numbers that next_tile returns.
template <class Format>
Tile tile_of(int tokens) {
  if constexpr (Format::kTokens >= 12) {
    if (tokens == 12) return tile_of<Format, 12>();
    if (tokens == 8) return tile_of<Format, 8>();
  }
  if constexpr (Format::kTokens >= 6) {
    if (tokens == 6) return tile_of<Format, 6>();
  }
  if constexpr (Format::kTokens >= 4) {
    if (tokens == 4) return tile_of<Format, 4>();
  }
  return tokens == 2 ? tile_of<Format, 2>() : tile_of<Format, 1>();
}

template <class Format>
void multiply(const LinearCall& call, std::int64_t first_panel, std::int64_t panels,
              const std::uint8_t* input) {
  const LinearInput shape = input_of<Format>(call);
  const std::int64_t end_panel = first_panel + panels;
  for (std::int64_t begin = first_panel; begin < end_panel; begin += kCachedPanels) {
    const std::int64_t end = begin + kCachedPanels < end_panel ? begin + kCachedPanels : end_panel;
    for (std::int64_t row = 0; row < call.rows;) {
      const int tokens = next_tile(call.rows - row, shape.tokens);
      const Tile tile = tile_of<Format>(tokens);
      const std::uint8_t* arranged = input + row * shape.row_bytes;
      std::int64_t panel = begin;
      for (; panel + tile.panels <= end; panel += tile.panels) {
        tile.several(call, row, panel, arranged);
      }
      for (; panel < end; ++panel) tile.one(call, row, panel, arranged);
      row += tokens;
    }
  }
}

}  // namespace

LinearInput linear_input(const LinearCall& call) {
  LinearInput input{};
  with_format(call.format, [&](auto format) { input = input_of<decltype(format)>(call); });
  return input;
}

void arrange_rows(const LinearCall& call, std::int64_t first, std::int64_t rows,
                  std::uint8_t* out) {
  with_format(call.format, [&](auto format) {
    using Format = decltype(format);
    const LinearInput shape = input_of<Format>(call);
    const float* x = call.x + first * call.columns;
    for (std::int64_t row = 0; row < rows;) {
      const int tokens = next_tile(rows - row, shape.tokens);
      for (int t = 0; t < tokens; ++t) {
        Format::arrange(x + (row + t) * call.columns, call.columns, t, tokens,
                        out + row * shape.row_bytes);
      }
      row += tokens;
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
