#pragma once

#include <cstdint>

namespace qwell {

// The element types of activations and weights. bfloat16 and float16 are storage only:
// arithmetic is done in fp32 by the primitives of simd/.
enum class DType { float32, bfloat16, float16 };

static constexpr std::int64_t element_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

}  // namespace qwell
