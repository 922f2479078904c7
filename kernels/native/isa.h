#pragma once

#include <vector>

namespace qwell {

// Instruction sets that kernels are compiled for, each in translation units of its own.
enum class Isa { portable, avx2, avx512, neon };

const char* isa_name(Isa isa);

// The instruction sets that both this build holds and this machine runs, the best one first.
// Asked of the processor at run time; portable is always the last.
std::vector<Isa> runnable_isas();

}  // namespace qwell
