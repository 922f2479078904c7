#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "adjust_logits.h"
#include "attention.h"
#include "ceilings.h"
#include "dtype.h"
#include "embedding.h"
#include "isa.h"
#include "linear.h"
#include "logprobs.h"
#include "pack.h"
#include "packed.h"
#include "paged_cache.h"
#include "pool.h"
#include "rms_norm.h"
#include "rope.h"
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

void define_adjust_logits(nb::module_& module) {
  nb::class_<qwell::AdjustLogitsCall>(module, "AdjustLogitsCall")
      .def(
          "__init__",
          [](qwell::AdjustLogitsCall* call, Address logits, Address ids, Address counts,
             Address biases, Address cu_ids, Address newest, Address repetition_penalty,
             Address presence_penalty, Address frequency_penalty, Address only_listed,
             std::int64_t rows, std::int64_t vocabulary) {
            new (call) qwell::AdjustLogitsCall{
                .logits = pointer<float>(logits),
                .ids = pointer<const std::int32_t>(ids),
                .counts = pointer<const std::int32_t>(counts),
                .biases = pointer<const double>(biases),
                .cu_ids = pointer<const std::int32_t>(cu_ids),
                .newest = pointer<const std::int32_t>(newest),
                .repetition_penalty = pointer<const double>(repetition_penalty),
                .presence_penalty = pointer<const double>(presence_penalty),
                .frequency_penalty = pointer<const double>(frequency_penalty),
                .only_listed = pointer<const std::int32_t>(only_listed),
                .rows = rows,
                .vocabulary = vocabulary};
          },
          nb::kw_only(), "logits"_a, "ids"_a, "counts"_a, "biases"_a, "cu_ids"_a, "newest"_a,
          "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "only_listed"_a,
          "rows"_a, "vocabulary"_a);
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

void define_linear(nb::module_& module) {
  nb::class_<qwell::LinearCall>(module, "LinearCall")
      .def(
          "__init__",
          [](qwell::LinearCall* call, qwell::WeightFormat format, Address x, Address weight,
             Address bias, Address y, std::int64_t rows, std::int64_t columns,
             std::int64_t outputs) {
            new (call) qwell::LinearCall{.x = pointer<const float>(x),
                                         .weight = pointer(weight),
                                         .bias = pointer<const float>(bias),
                                         .y = pointer<float>(y),
                                         .rows = rows,
                                         .columns = columns,
                                         .outputs = outputs,
                                         .format = format};
          },
          nb::kw_only(), "format"_a, "x"_a, "weight"_a, "bias"_a, "y"_a, "rows"_a, "columns"_a,
          "outputs"_a);
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
             Address top_p, Address min_p, Address typical_p, Address uniform, Address next_ids,
             std::int64_t rows, std::int64_t vocabulary) {
            new (call) qwell::SampleCall{
                .logits = pointer<const float>(logits),
                .temperature = pointer<const double>(temperature),
                .top_k = pointer<const std::int32_t>(top_k),
                .top_p = pointer<const double>(top_p),
                .min_p = pointer<const double>(min_p),
                .typical_p = pointer<const double>(typical_p),
                .uniform = pointer<const double>(uniform),
                .next_ids = pointer<std::int32_t>(next_ids),
                .rows = rows,
                .vocabulary = vocabulary};
          },
          nb::kw_only(), "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
          "typical_p"_a, "uniform"_a, "next_ids"_a, "rows"_a, "vocabulary"_a);
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

void define_attention(nb::module_& module) {
  nb::class_<qwell::AttentionCall>(module, "AttentionCall")
      .def(
          "__init__",
          [](qwell::AttentionCall* call, qwell::CacheDType cache_dtype, Address q, Address k_cache,
             Address v_cache, Address k_scales, Address v_scales, Address block_table,
             Address cu_seqlens_q, Address seq_lens, Address out, std::int64_t rows,
             std::int64_t max_seqs, std::int64_t table_stride, std::int64_t num_heads,
             std::int64_t num_kv_heads, std::int64_t head_dim, std::int64_t window, float scale) {
            new (call)
                qwell::AttentionCall{.q = pointer<const float>(q),
                                     .k_cache = pointer(k_cache),
                                     .v_cache = pointer(v_cache),
                                     .k_scales = pointer<const float>(k_scales),
                                     .v_scales = pointer<const float>(v_scales),
                                     .block_table = pointer<const std::int32_t>(block_table),
                                     .cu_seqlens_q = pointer<const std::int32_t>(cu_seqlens_q),
                                     .seq_lens = pointer<const std::int32_t>(seq_lens),
                                     .out = pointer<float>(out),
                                     .rows = rows,
                                     .max_seqs = max_seqs,
                                     .table_stride = table_stride,
                                     .num_heads = num_heads,
                                     .num_kv_heads = num_kv_heads,
                                     .head_dim = head_dim,
                                     .window = window,
                                     .scale = scale,
                                     .cache_dtype = cache_dtype};
          },
          nb::kw_only(), "cache_dtype"_a, "q"_a, "k_cache"_a, "v_cache"_a, "k_scales"_a,
          "v_scales"_a, "block_table"_a, "cu_seqlens_q"_a, "seq_lens"_a, "out"_a, "rows"_a,
          "max_seqs"_a, "table_stride"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "window"_a,
          "scale"_a);
}

void define_rope(nb::module_& module) {
  nb::class_<qwell::RopeCall>(module, "RopeCall")
      .def(
          "__init__",
          [](qwell::RopeCall* call, qwell::CacheDType cache_dtype, Address qkv, Address positions,
             Address cos_sin, Address q_norm, Address k_norm, Address slot_mapping, Address k_cache,
             Address v_cache, Address k_scales, Address v_scales, Address q, std::int64_t rows,
             std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim, float eps) {
            new (call) qwell::RopeCall{.qkv = pointer<const float>(qkv),
                                       .positions = pointer<const std::int32_t>(positions),
                                       .cos_sin = pointer<const float>(cos_sin),
                                       .q_norm = pointer<const float>(q_norm),
                                       .k_norm = pointer<const float>(k_norm),
                                       .slot_mapping = pointer<const std::int32_t>(slot_mapping),
                                       .k_cache = pointer(k_cache),
                                       .v_cache = pointer(v_cache),
                                       .k_scales = pointer<float>(k_scales),
                                       .v_scales = pointer<float>(v_scales),
                                       .q = pointer<float>(q),
                                       .rows = rows,
                                       .num_heads = num_heads,
                                       .num_kv_heads = num_kv_heads,
                                       .head_dim = head_dim,
                                       .eps = eps,
                                       .cache_dtype = cache_dtype};
          },
          nb::kw_only(), "cache_dtype"_a, "qkv"_a, "positions"_a, "cos_sin"_a, "q_norm"_a,
          "k_norm"_a, "slot_mapping"_a, "k_cache"_a, "v_cache"_a, "k_scales"_a, "v_scales"_a, "q"_a,
          "rows"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "eps"_a);
}

void define_pack(nb::module_& module) {
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
      "append",
      [](qwell::Tape& self, const Call& call, qwell::Rows rows) { self.append(call, rows); },
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
  nb::enum_<qwell::CacheDType>(module, "CacheDType")
      .value("float32", qwell::CacheDType::float32)
      .value("bfloat16", qwell::CacheDType::bfloat16)
      .value("float16", qwell::CacheDType::float16)
      .value("int8", qwell::CacheDType::int8);
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
  module.def("missing_for_x86_64_v2", &qwell::missing_for_x86_64_v2,
             "What an x86-64 processor lacks for that level; nothing on others.");
  module.def("missing_for_avx2", &qwell::missing_for_avx2,
             "What an x86-64 processor lacks for the avx2 kernels; nothing on others.");

  nb::class_<qwell::Pool>(module, "Pool", "Threads that share the tasks of one op at a time.")
      .def(nb::init<int>(), "threads"_a)
      .def_prop_ro("threads", &qwell::Pool::threads);

  nb::class_<qwell::Tape> tape(module, "Tape", "Recorded ops, run again by one call.");
  tape.def(nb::init<>())
      .def("__len__", &qwell::Tape::size)
      .def("replay", &qwell::Tape::replay, nb::call_guard<nb::gil_scoped_release>(), "isa"_a,
           "pool"_a, "tokens"_a, "logits"_a);

  define_ceilings(module);
  define_adjust_logits(module);
  define_attention(module);
  define_embedding(module);
  define_linear(module);
  define_logprobs(module);
  define_pack(module);
  define_rms_norm(module);
  define_rope(module);
  define_sample(module);
  define_silu_mul(module);
  define_runs<qwell::AdjustLogitsCall>(module, tape);
  define_runs<qwell::AttentionCall>(module, tape);
  define_runs<qwell::EmbeddingCall>(module, tape);
  define_runs<qwell::LinearCall>(module, tape);
  define_runs<qwell::LogprobsCall>(module, tape);
  define_runs<qwell::RmsNormCall>(module, tape);
  define_runs<qwell::RopeCall>(module, tape);
  define_runs<qwell::SampleCall>(module, tape);
  define_runs<qwell::SiluMulCall>(module, tape);
}
