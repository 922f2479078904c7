#pragma once

#include "simd.h"

namespace qwell::QWELL_ISA {
namespace {

// Adds the upper half of the lanes of Registers vectors, taken as one, to the lower half until one
// is left: the same order whatever the width of a vector is. Overwrites them.
template <int Registers>
float sum_lanes(Vec (&partial)[Registers]) {
  for (int half = Registers / 2; half > 0; half /= 2) {
    for (int r = 0; r < half; ++r) partial[r] = partial[r] + partial[r + half];
  }
  float lanes[Vec::width];
  store(lanes, partial[0]);
  for (int half = Vec::width / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace
}  // namespace qwell::QWELL_ISA
