#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "linear.h"
#include "packed.h"
#include "simd/dot.h"
#include "unroll.h"
#include "widen.h"

// What a step of linear does in each format:
//
//   kColumns       columns of a step; kBytes of a panel, kInputBytes of a row of arranged x
//   kTokens        rows of a tile at most; panels(tokens), panels in flight with so many
//   arrange(x, columns, row, rows, out)    puts a row of x into its tile
//   add<Tokens>(panel, input, sums)        adds a step of one panel to the sums of all rows
namespace qwell::QWELL_ISA {
namespace {

constexpr int kVectors = static_cast<int>(kPanelRows) / Vec::width;

// Rows of a tile whose sums and weights fit the registers.
constexpr int kDenseTokens = Vec::width == 16 ? 12 : kFused ? 6 : 2;

// Panels in flight: memory answers several streams faster than one, and short chains of sums
// leave the arithmetic waiting.
constexpr int dense_panels(int tokens) {
  return !kFused ? 1 : tokens == 1 ? 4 : Vec::width == 16 || tokens == 2 ? 2 : 1;
}

template <class T>
void put(std::uint8_t* out, std::int64_t i, T value) {
  std::memcpy(out + i * static_cast<std::int64_t>(sizeof(T)), &value, sizeof(T));
}

template <class T>
T get(const std::uint8_t* in, std::int64_t i) {
  T value;
  std::memcpy(&value, in + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Adds a column, `Bytes` for each row of the panel, to the sums of all rows of x.
template <int Bytes, int Tokens, class Widen>
[[gnu::always_inline]] inline void multiply_add(const std::uint8_t* words,
                                                const std::uint8_t* input,
                                                Vec (&sums)[Tokens][kVectors],
                                                const Widen& widen) {
  Vec weight[kVectors];
  unroll<kVectors>([&](auto v) QWELL_INLINE { weight[v] = widen(words + v * Vec::width * Bytes); });
  unroll<Tokens>([&](auto t) QWELL_INLINE {
    const Vec value = splat(get<float>(input, t));
    unroll<kVectors>([&](auto v) QWELL_INLINE { sums[t][v] = fma(weight[v], value, sums[t][v]); });
  });
}

// f32 and f16. Arranged: [columns][rows].
template <class T>
struct Dense {
  static constexpr int kColumns = 1;
  static constexpr std::int64_t kBytes = kPanelRows * sizeof(T);
  static constexpr std::int64_t kInputBytes = 4;
  static constexpr int kTokens = kDenseTokens;
  static constexpr int panels(int tokens) { return dense_panels(tokens); }

  static void arrange(const float* x, std::int64_t columns, int row, int rows, std::uint8_t* out) {
    for (std::int64_t k = 0; k < columns; ++k) put(out, k * rows + row, x[k]);
  }

  template <int Tokens>
  [[gnu::always_inline]] static void add(const std::uint8_t* panel, const std::uint8_t* input,
                                         Vec (&sums)[Tokens][kVectors]) {
    multiply_add<sizeof(T), Tokens>(panel, input, sums, [](const std::uint8_t* from) QWELL_INLINE {
      return load(reinterpret_cast<const T*>(from));
    });
  }
};

#if defined(QWELL_BF16_DOT)
// bf16. Arranged: [pairs of columns][rows], rounded to bfloat16.
struct Bf16 {
  static constexpr int kColumns = 2;
  static constexpr std::int64_t kBytes = kPanelRows * 4;
  static constexpr std::int64_t kInputBytes = 4;
  static constexpr int kTokens = kDenseTokens;
  static constexpr int panels(int tokens) { return dense_panels(tokens); }

  static void arrange(const float* x, std::int64_t columns, int row, int rows, std::uint8_t* out) {
    constexpr int kPairs = Vec::width / 2;
    BFloat16 pairs[Vec::width];
    std::int64_t k = 0;
    for (; k + Vec::width <= columns; k += Vec::width) {
      store(pairs, load(x + k));
      for (int i = 0; i < kPairs; ++i) {
        std::memcpy(out + ((k / 2 + i) * rows + row) * 4, pairs + 2 * i, 4);
      }
    }
    if (k == columns) return;
    float rest[Vec::width] = {};
    std::memcpy(rest, x + k, static_cast<std::size_t>(columns - k) * sizeof(float));
    store(pairs, load(rest));
    for (int i = 0; i < (columns - k + 1) / 2; ++i) {
      std::memcpy(out + ((k / 2 + i) * rows + row) * 4, pairs + 2 * i, 4);
    }
  }

  template <int Tokens>
  [[gnu::always_inline]] static void add(const std::uint8_t* panel, const std::uint8_t* input,
                                         Vec (&sums)[Tokens][kVectors]) {
    unroll<Tokens>([&](auto t) QWELL_INLINE {
      sums[t][0] = dot_pairs(sums[t][0], load_pairs(panel), get<std::uint32_t>(input, t));
    });
  }
};
#else
// bf16. Arranged: [pairs of columns][2][rows]; an odd last column is followed by zeros.
struct Bf16 {
  static constexpr int kColumns = 2;
  static constexpr std::int64_t kBytes = kPanelRows * 4;
  static constexpr std::int64_t kInputBytes = 8;
  // With 16 registers of 8 lanes there is no room beside six rows to widen weights.
  static constexpr int kTokens = Vec::width == 8 ? 4 : kDenseTokens;
  static constexpr int panels(int tokens) { return dense_panels(tokens); }

  static void arrange(const float* x, std::int64_t columns, int row, int rows, std::uint8_t* out) {
    Dense<float>::arrange(x, columns, row, rows, out);
    if (columns % 2 != 0) put(out, columns * rows + row, 0.0F);
  }

  template <int Tokens>
  [[gnu::always_inline]] static void add(const std::uint8_t* panel, const std::uint8_t* input,
                                         Vec (&sums)[Tokens][kVectors]) {
    // One column after the other: weights of both do not fit beside the sums.
    multiply_add<4, Tokens>(panel, input, sums,
                         [](const std::uint8_t* from) QWELL_INLINE { return even_of_pairs(from); });
    multiply_add<4, Tokens>(panel, input + 4 * Tokens, sums,
                         [](const std::uint8_t* from) QWELL_INLINE { return odd_of_pairs(from); });
  }
};
#endif

// int8 and int4. Arranged, for each group: what the zero point takes from the sums, a word each
// row; scales; [8][rows] quads of columns.
template <int Bits>
struct Grouped {
  using Dot = std::conditional_t<Bits == 8, Int8Dot, Int4Dot>;
  static constexpr int kColumns = static_cast<int>(kGroup);
  static constexpr int kQuads = kColumns / 4;
  static constexpr std::int64_t kScaleBytes = kPanelRows * 2;
  static constexpr std::int64_t kBytes = kScaleBytes + kPanelRows * kColumns * Bits / 8;
  static constexpr std::int64_t kInputBytes = 8 + kQuads * Dot::kQuadBytes;
  static constexpr int kTokens = kIntTokens;
  static constexpr std::int32_t kZero = 1 << (Bits - 1);

  static constexpr int panels(int tokens) {
    return !kFused ? 1 : tokens == 1 ? 4 : tokens <= kTokens / 2 ? 2 : 1;
  }

  static void arrange(const float* x, std::int64_t columns, int row, int rows, std::uint8_t* out) {
    for (std::int64_t k = 0; k < columns; k += kColumns, out += kInputBytes * rows) {
      // Bits of magnitudes are in the order of the magnitudes, NaN above all.
      std::uint32_t most = 0;
      for (int i = 0; i < kColumns; ++i) {
        const std::uint32_t magnitude = to_bits(x[k + i]) & 0x7FFFFFFFU;
        most = magnitude > most ? magnitude : most;
      }
      const float largest = from_bits(most);
      // Of smaller ones the inverse overflows; of infinities and NaN the result is NaN.
      const bool none = largest < 0x1p-100F;
      const bool finite = most < 0x7F800000U;
      const float scale = finite ? (none ? 0.0F : largest / 127.0F) : from_bits(0x7FC00000U);
      const float inverse = none ? 0.0F : 127.0F / largest;

      // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the bits.
      constexpr float kRound = 12582912.0F;
      std::int8_t codes[kColumns];
      std::int32_t sum = 0;
      for (int i = 0; i < kColumns; ++i) {
        const float value = finite ? x[k + i] * inverse : 0.0F;
        const auto code = static_cast<std::int32_t>(to_bits(value + kRound) - to_bits(kRound));
        codes[i] = static_cast<std::int8_t>(code);
        sum += code;
      }
      put(out, row, -kZero * sum);
      put(out, rows + row, scale);
      for (int i = 0; i < kQuads; ++i) {
        Dot::put_quad(out + 8 * rows + (i * rows + row) * Dot::kQuadBytes, codes + 4 * i);
      }
    }
  }

  template <int Tokens>
  [[gnu::always_inline]] static void add(const std::uint8_t* panel, const std::uint8_t* input,
                                         Vec (&sums)[Tokens][kVectors]) {
    std::int32_t zeros[Tokens];
    typename Dot::Sum dots[Tokens][kVectors];
    unroll<Tokens>([&](auto t) QWELL_INLINE {
      zeros[t] = get<std::int32_t>(input, t);
      unroll<kVectors>([&](auto v) QWELL_INLINE { dots[t][v] = Dot::begin(&zeros[t]); });
    });
    const std::uint8_t* lines = panel + kScaleBytes;
    if constexpr (Bits == 8) {
      unroll<kQuads>([&](auto i) QWELL_INLINE {
        add_quad<i, Tokens>(input, dots, [&](auto v) QWELL_INLINE {
          return load_codes(lines + (i * kPanelRows + v * Vec::width) * 4);
        });
      });
    } else {
      unroll<kQuads / 2>([&](auto i) QWELL_INLINE {
        Codes line[kVectors];
        unroll<kVectors>([&](auto v) QWELL_INLINE {
          line[v] = load_codes(lines + (i * kPanelRows + v * Vec::width) * 4);
        });
        add_quad<i, Tokens>(input, dots, [&](auto v) QWELL_INLINE { return low_halves(line[v]); });
        add_quad<i + kQuads / 2, Tokens>(
            input, dots, [&](auto v) QWELL_INLINE { return high_halves(line[v]); });
      });
    }
    Vec scales[kVectors];
    unroll<kVectors>([&](auto v) QWELL_INLINE {
      scales[v] = load(reinterpret_cast<const Float16*>(panel) + v * Vec::width);
    });
    unroll<Tokens>([&](auto t) QWELL_INLINE {
      const Vec scale = splat(get<float>(input, Tokens + t));
      unroll<kVectors>([&](auto v) QWELL_INLINE {
        sums[t][v] = fma(Dot::end(dots[t][v], &zeros[t]), scales[v] * scale, sums[t][v]);
      });
    });
  }

 private:
  template <int Place, int Tokens, class CodesOf>
  [[gnu::always_inline]] static void add_quad(const std::uint8_t* input,
                                              typename Dot::Sum (&dots)[Tokens][kVectors],
                                              const CodesOf& codes_of) {
    typename Dot::Weights weights[kVectors];
    unroll<kVectors>([&](auto v) QWELL_INLINE { weights[v] = Dot::prepare(codes_of(v)); });
    unroll<Tokens>([&](auto t) QWELL_INLINE {
      const auto quad = Dot::load_quad(input + 8 * Tokens + (Place * Tokens + t) * Dot::kQuadBytes);
      unroll<kVectors>([&](auto v) QWELL_INLINE { Dot::add(dots[t][v], weights[v], quad); });
    });
  }
};

template <class Run>
void with_format(WeightFormat format, const Run& run) {
  switch (format) {
    case WeightFormat::f32:
      return run(Dense<float>{});
    case WeightFormat::bf16:
      return run(Bf16{});
    case WeightFormat::f16:
      return run(Dense<Float16>{});
    case WeightFormat::int8:
      return run(Grouped<8>{});
    case WeightFormat::int4:
      return run(Grouped<4>{});
  }
}

template <class Format>
LinearInput input_of(const LinearCall& call) {
  const std::int64_t steps = (call.columns + Format::kColumns - 1) / Format::kColumns;
  return {.tokens = Format::kTokens, .row_bytes = steps * Format::kInputBytes};
}

}  // namespace
}  // namespace qwell::QWELL_ISA
