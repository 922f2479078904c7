#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "ceilings.h"
#include "dtype.h"
#include "isa.h"
#include "pack.h"
#include "packed.h"
#include "pool.h"
#include "rms_norm.h"
#include "tape.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Tensors arrive as addresses: their Python wrappers check them, and a bound array type would
// cost more per call than a small kernel runs. 0 is an absent tensor.
using Address = std::uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void define_rms_norm(nb::module_& module) {
  nb::class_<qwell::RmsNormCall>(module, "RmsNormCall")
      .def(
          "__init__",
          [](qwell::RmsNormCall* call, qwell::DType dtype, Address x, Address residual,
             Address weight, Address y, Address s, std::int64_t rows, std::int64_t width,
             float eps) {
            new (call) qwell::RmsNormCall{.x = pointer(x),
                                          .residual = pointer(residual),
                                          .weight = pointer(weight),
                                          .y = pointer(y),
                                          .s = pointer(s),
                                          .rows = rows,
                                          .width = width,
                                          .eps = eps,
                                          .dtype = dtype};
          },
          nb::kw_only(), "dtype"_a, "x"_a, "residual"_a, "weight"_a, "y"_a, "s"_a, "rows"_a,
          "width"_a, "eps"_a);
}

void define_ceilings(nb::module_& module) {
  module.def(
      "read_all",
      [](qwell::Isa isa, qwell::Pool& pool, Address data, std::int64_t count) {
        return qwell::read_all(isa, pool, pointer<const float>(data), count);
      },
      nb::call_guard<nb::gil_scoped_release>(), "isa"_a, "pool"_a, "data"_a, "count"_a);
  module.def("fma_burst", &qwell::fma_burst, nb::call_guard<nb::gil_scoped_release>(), "isa"_a,
             "pool"_a, "tasks"_a);
}

void define_pack(nb::module_& module) {
  nb::enum_<qwell::WeightFormat>(module, "WeightFormat")
      .value("f32", qwell::WeightFormat::f32)
      .value("bf16", qwell::WeightFormat::bf16)
      .value("f16", qwell::WeightFormat::f16)
      .value("int8", qwell::WeightFormat::int8)
      .value("int4", qwell::WeightFormat::int4);
  module.def(
      "pack",
      [](qwell::Isa isa, qwell::Pool& pool, qwell::WeightFormat format,
         const std::vector<std::tuple<Address, std::int64_t, qwell::DType>>& parts,
         std::int64_t columns, Address packed) {
        std::vector<qwell::StoredRows> stored;
        for (const auto& [data, rows, dtype] : parts) stored.push_back({pointer(data), rows, dtype});
        return qwell::pack(isa, pool, format, stored, columns, pointer(packed));
      },
      nb::call_guard<nb::gil_scoped_release>(), "isa"_a, "pool"_a, "format"_a, "parts"_a,
      "columns"_a, "packed"_a);
}

template <class Call>
void define_runs(nb::module_& module, nb::class_<qwell::Tape>& tape) {
  module.def(
      "run", [](qwell::Isa isa, qwell::Pool& pool, const Call& call) { run(isa, pool, call); },
      nb::call_guard<nb::gil_scoped_release>(), "isa"_a, "pool"_a, "call"_a);
  tape.def(
      "append", [](qwell::Tape& self, const Call& call, qwell::Rows rows) { self.append(call, rows); },
      "call"_a, "rows"_a);
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Native CPU kernels of qwell; call them through their wrappers in kernels/native.";

  // Ops live as long as the modules that hold them, which Python does not clear when it ends.
  nb::set_leak_warnings(false);

  nb::enum_<qwell::Isa>(module, "Isa")
      .value("portable", qwell::Isa::portable)
      .value("avx2", qwell::Isa::avx2)
      .value("avx512", qwell::Isa::avx512)
      .value("avx512_bf16", qwell::Isa::avx512_bf16)
      .value("neon", qwell::Isa::neon)
      .value("neon_dotprod", qwell::Isa::neon_dotprod);
  nb::enum_<qwell::DType>(module, "DType")
      .value("float32", qwell::DType::float32)
      .value("bfloat16", qwell::DType::bfloat16)
      .value("float16", qwell::DType::float16);
  nb::enum_<qwell::Rows>(module, "Rows")
      .value("tokens", qwell::Rows::tokens)
      .value("logits", qwell::Rows::logits);

  module.def("runnable_isas", &qwell::runnable_isas,
             "Instruction sets of this build that this machine runs, the best one first.");

  nb::class_<qwell::Pool>(module, "Pool", "Threads that share the tasks of one op at a time.")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("threads", &qwell::Pool::threads);

  nb::class_<qwell::Tape> tape(module, "Tape", "Recorded ops, run again by one call.");
  tape.def(nb::init<>())
      .def("__len__", &qwell::Tape::size)
      .def("replay", &qwell::Tape::replay, nb::call_guard<nb::gil_scoped_release>(), "isa"_a,
           "pool"_a, "tokens"_a, "logits"_a);

  define_ceilings(module);
  define_pack(module);
  define_rms_norm(module);
  define_runs<qwell::RmsNormCall>(module, tape);
}
