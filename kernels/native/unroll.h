#pragma once

#include <utility>

// Of a lambda, after its parameters: always inlined.
#define QWELL_INLINE __attribute__((always_inline))

namespace qwell {

// Calls body(std::integral_constant<int, i>) for i in 0 .. Count - 1, without a loop: arrays that
// are only indexed so live in registers whatever a compiler thinks of unrolling.
template <int Count, class Body>
[[gnu::always_inline]] inline void unroll(const Body& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) QWELL_INLINE {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, Count>{});
}

}  // namespace qwell
