#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

#include "dtype.h"
#include "isa.h"
#include "rms_norm.h"

namespace nb = nanobind;

namespace {

// Tensors arrive as addresses: their Python wrappers check them, and a bound array type would
// cost more per call than a small kernel runs.
template <class T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void rms_norm(qwell::Isa isa, qwell::DType dtype, std::uintptr_t x, std::uintptr_t residual,
              std::uintptr_t weight, std::uintptr_t y, std::uintptr_t s, std::int64_t rows,
              std::int64_t width, float eps) {
  qwell::rms_norm(isa, {.x = pointer<const void>(x),
                        .residual = pointer<const void>(residual),
                        .weight = pointer<const void>(weight),
                        .y = pointer<void>(y),
                        .s = pointer<void>(s),
                        .rows = rows,
                        .width = width,
                        .eps = eps,
                        .dtype = dtype});
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Native CPU kernels of qwell; call them through their wrappers in kernels/native.";

  nb::enum_<qwell::Isa>(module, "Isa")
      .value("portable", qwell::Isa::portable)
      .value("avx2", qwell::Isa::avx2)
      .value("avx512", qwell::Isa::avx512)
      .value("neon", qwell::Isa::neon);
  nb::enum_<qwell::DType>(module, "DType")
      .value("float32", qwell::DType::float32)
      .value("bfloat16", qwell::DType::bfloat16)
      .value("float16", qwell::DType::float16);

  module.def("runnable_isas", &qwell::runnable_isas,
             "Instruction sets of this build that this machine runs, the best one first.");
  module.def("rms_norm", &rms_norm, nb::call_guard<nb::gil_scoped_release>(),
             "Addresses and sizes of a qwell::RmsNormCall; 0 for an absent tensor.");
}
