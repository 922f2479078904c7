#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

#include "ceilings.h"
#include "dtype.h"
#include "embedding.h"
#include "isa.h"
#include "logprobs.h"
#include "packed.h"
#include "pool.h"
#include "rms_norm.h"
#include "sample.h"
#include "silu_mul.h"
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

void define_embedding(nb::module_& module) {
  nb::class_<qwell::EmbeddingCall>(module, "EmbeddingCall")
      .def(
          "__init__",
          [](qwell::EmbeddingCall* call, Address ids, Address table, Address y, std::int64_t rows,
             std::int64_t width, qwell::WeightFormat format, bool packed) {
            new (call) qwell::EmbeddingCall{.ids = pointer<const std::int32_t>(ids),
                                            .table = pointer(table),
                                            .y = pointer<float>(y),
                                            .rows = rows,
                                            .width = width,
                                            .format = format,
                                            .packed = packed};
          },
          nb::kw_only(), "ids"_a, "table"_a, "y"_a, "rows"_a, "width"_a, "format"_a, "packed"_a);
}

void define_silu_mul(nb::module_& module) {
  nb::class_<qwell::SiluMulCall>(module, "SiluMulCall")
      .def(
          "__init__",
          [](qwell::SiluMulCall* call, Address gate_up, Address y, std::int64_t rows,
             std::int64_t width) {
            new (call) qwell::SiluMulCall{.gate_up = pointer<const float>(gate_up),
                                          .y = pointer<float>(y),
                                          .rows = rows,
                                          .width = width};
          },
          nb::kw_only(), "gate_up"_a, "y"_a, "rows"_a, "width"_a);
}

void define_logprobs(nb::module_& module) {
  nb::class_<qwell::LogprobsCall>(module, "LogprobsCall")
      .def(
          "__init__",
          [](qwell::LogprobsCall* call, Address logits, Address ids, Address logprobs,
             Address top_ids, Address top_logprobs, std::int64_t rows, std::int64_t vocabulary,
             std::int64_t top) {
            new (call) qwell::LogprobsCall{.logits = pointer<const float>(logits),
                                           .ids = pointer<const std::int32_t>(ids),
                                           .logprobs = pointer<float>(logprobs),
                                           .top_ids = pointer<std::int32_t>(top_ids),
                                           .top_logprobs = pointer<float>(top_logprobs),
                                           .rows = rows,
                                           .vocabulary = vocabulary,
                                           .top = top};
          },
          nb::kw_only(), "logits"_a, "ids"_a, "logprobs"_a, "top_ids"_a, "top_logprobs"_a,
          "rows"_a, "vocabulary"_a, "top"_a);
}

void define_sample(nb::module_& module) {
  nb::class_<qwell::SampleCall>(module, "SampleCall")
      .def(
          "__init__",
          [](qwell::SampleCall* call, Address logits, Address temperature, Address top_k,
             Address top_p, Address min_p, Address repetition_penalty, Address seen_ids,
             Address cu_seen, Address uniform, Address next_ids, std::int64_t rows,
             std::int64_t vocabulary) {
            new (call) qwell::SampleCall{
                .logits = pointer<const float>(logits),
                .temperature = pointer<const double>(temperature),
                .top_k = pointer<const std::int32_t>(top_k),
                .top_p = pointer<const double>(top_p),
                .min_p = pointer<const double>(min_p),
                .repetition_penalty = pointer<const double>(repetition_penalty),
                .seen_ids = pointer<const std::int32_t>(seen_ids),
                .cu_seen = pointer<const std::int32_t>(cu_seen),
                .uniform = pointer<const double>(uniform),
                .next_ids = pointer<std::int32_t>(next_ids),
                .rows = rows,
                .vocabulary = vocabulary};
          },
          nb::kw_only(), "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
          "repetition_penalty"_a, "seen_ids"_a, "cu_seen"_a, "uniform"_a, "next_ids"_a, "rows"_a,
          "vocabulary"_a);
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
  nb::enum_<qwell::WeightFormat>(module, "WeightFormat")
      .value("f32", qwell::WeightFormat::f32)
      .value("bf16", qwell::WeightFormat::bf16)
      .value("f16", qwell::WeightFormat::f16)
      .value("int8", qwell::WeightFormat::int8)
      .value("int4", qwell::WeightFormat::int4);
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
  define_embedding(module);
  define_logprobs(module);
  define_rms_norm(module);
  define_sample(module);
  define_silu_mul(module);
  define_runs<qwell::EmbeddingCall>(module, tape);
  define_runs<qwell::LogprobsCall>(module, tape);
  define_runs<qwell::RmsNormCall>(module, tape);
  define_runs<qwell::SampleCall>(module, tape);
  define_runs<qwell::SiluMulCall>(module, tape);
}
