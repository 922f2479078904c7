#include "rms_norm.h"

namespace qwell {

void rms_norm(Isa isa, const RmsNormCall& call) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512::rms_norm(call);
    case Isa::avx2:
      return avx2::rms_norm(call);
#elif defined(__aarch64__)
    case Isa::neon:
      return neon::rms_norm(call);
#endif
    default:
      return portable::rms_norm(call);
  }
}

}  // namespace qwell
