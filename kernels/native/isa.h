#pragma once

#include <vector>

namespace qwell {

// Instruction sets that kernels are compiled for, each in translation units of its own. avx512
// has VNNI's dot products of bytes, avx512_bf16 those of bfloat16 too; a processor with less of
// AVX-512 runs avx2.
enum class Isa { portable, avx2, avx512, avx512_bf16, neon, neon_dotprod };

const char* isa_name(Isa isa);

// The instruction sets that both this build holds and this machine runs, the best one first.
// Asked of the processor at run time; portable is always the last.
std::vector<Isa> runnable_isas();

// What an x86-64 processor lacks for that level of the architecture, and for avx2, in the names of
// /proc/cpuinfo; nothing on others.
std::vector<const char*> missing_for_x86_64_v2();
std::vector<const char*> missing_for_avx2();

// Functions of headers that kernel units include are static: of an inline function the linker keeps
// the copy of any one unit, and that may hold instructions which this processor lacks.

// QWELL_PER_ISA(declarations) repeats declarations in the namespace of every instruction set of
// this architecture; QWELL_KERNEL(isa, name) is the address of the function of that name for isa.
#if defined(__x86_64__)
#define QWELL_PER_ISA(...)                \
  namespace portable { __VA_ARGS__ }      \
  namespace avx2 { __VA_ARGS__ }          \
  namespace avx512 { __VA_ARGS__ }        \
  namespace avx512_bf16 { __VA_ARGS__ }
#define QWELL_KERNEL(isa, name)                                     \
  ((isa) == ::qwell::Isa::avx512_bf16 ? &::qwell::avx512_bf16::name \
   : (isa) == ::qwell::Isa::avx512    ? &::qwell::avx512::name      \
   : (isa) == ::qwell::Isa::avx2      ? &::qwell::avx2::name        \
                                      : &::qwell::portable::name)
#elif defined(__aarch64__)
#define QWELL_PER_ISA(...)           \
  namespace portable { __VA_ARGS__ } \
  namespace neon { __VA_ARGS__ }     \
  namespace neon_dotprod { __VA_ARGS__ }
#define QWELL_KERNEL(isa, name)                                       \
  ((isa) == ::qwell::Isa::neon_dotprod ? &::qwell::neon_dotprod::name \
   : (isa) == ::qwell::Isa::neon       ? &::qwell::neon::name         \
                                       : &::qwell::portable::name)
#else
#define QWELL_PER_ISA(...) \
  namespace portable { __VA_ARGS__ }
#define QWELL_KERNEL(isa, name) (static_cast<void>(isa), &::qwell::portable::name)
#endif

}  // namespace qwell
