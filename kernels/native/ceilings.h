#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace qwell {

// What the machine reaches at best, to judge kernels by: the caller takes the time.

// Reads count floats at data once with all threads, four streams each, and returns their sum, so
// that no read can be left out. `isa` must be one of runnable_isas().
float read_all(Isa isa, Pool& pool, const float* data, std::int64_t count);

// Work of one fma_burst task: enough that handing it out does not show.
constexpr std::int64_t kBurstSteps = 1 << 18;

// Runs `tasks` tasks of kBurstSteps steps of independent chains of fp32 x = x * a + b; returns
// how many multiplications and additions that were, both counted.
double fma_burst(Isa isa, Pool& pool, std::int64_t tasks);

// One implementation per instruction set, each from ceilings_kernel.cpp.
QWELL_PER_ISA(float sum(const float* data, std::int64_t count);
              std::int64_t multiply_add(std::int64_t steps, float* result);)

}  // namespace qwell
