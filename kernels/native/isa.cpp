#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace qwell {

#if defined(__x86_64__)
namespace {

// Not by __builtin_cpu_supports: older releases of Clang do not know that name.
bool has_f16c() {
  unsigned int eax = 0;
  unsigned int ebx = 0;
  unsigned int ecx = 0;
  unsigned int edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx512_bf16() {
  unsigned int eax = 0;
  unsigned int ebx = 0;
  unsigned int ecx = 0;
  unsigned int edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & bit_AVX512BF16) != 0;
}

}  // namespace
#endif

std::vector<const char*> missing_for_x86_64_v2() {
  std::vector<const char*> missing;
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("ssse3")) missing.push_back("ssse3");
  if (!__builtin_cpu_supports("sse4.1")) missing.push_back("sse4_1");
  if (!__builtin_cpu_supports("sse4.2")) missing.push_back("sse4_2");
  if (!__builtin_cpu_supports("popcnt")) missing.push_back("popcnt");
#endif
  return missing;
}

std::vector<const char*> missing_for_avx2() {
  std::vector<const char*> missing;
#if defined(__x86_64__)
  // These builtins also ask the operating system whether it saves the wide registers.
  if (!__builtin_cpu_supports("avx2")) missing.push_back("avx2");
  if (!__builtin_cpu_supports("fma")) missing.push_back("fma");
  if (!has_f16c()) missing.push_back("f16c");
#endif
  return missing;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::neon:
      return "neon";
    case Isa::neon_dotprod:
      return "neon_dotprod";
    case Isa::portable:
      break;
  }
  return "portable";
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  if (missing_for_avx2().empty()) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni")) {
      if (has_avx512_bf16()) isas.push_back(Isa::avx512_bf16);
      isas.push_back(Isa::avx512);
    }
    isas.push_back(Isa::avx2);
  }
#elif defined(__aarch64__)
#if defined(__linux__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) isas.push_back(Isa::neon_dotprod);
#endif
  isas.push_back(Isa::neon);  // part of the base architecture
#endif
  isas.push_back(Isa::portable);
  return isas;
}

}  // namespace qwell
