"""--weights, --dtype and --kv-cache-dtype: what is kept in memory, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from engines import greedy, start_engine
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwell.bench.work import Work
from qwell.kernels.native.packed import PackedWeight
from qwell.kernels.quantize import quantize_int4, quantize_int8
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineStartError
from qwell.runtime.llm import LLM
from qwell.runtime.precision import choose_precision

STORED = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "f32": lambda weight: weight.float(),
    "bf16": lambda weight: weight.bfloat16().float(),
    "f16": lambda weight: weight.half().float(),
    "int8": lambda weight: quantize_int8(weight).dequantize(),
    "int4": lambda weight: quantize_int4(weight).dequantize(),
}
PROMPT = [5, 3, 8, 13]

each_dtype = pytest.mark.parametrize("dtype", STORED, ids=str)


@pytest.fixture(scope="module")
def bf16_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16")
    make_checkpoint(path, "qwen3", dtype=torch.bfloat16, tie_word_embeddings=True)
    return path


def check_weights(engine: Engine, tensors: dict[str, Tensor], weight_format: str) -> None:
    """Every matrix of the first layer, and the embedding, hold what the format makes of them."""
    decoder = engine.model.decoder
    layer = decoder.layers[0]
    found = {
        ("embed_tokens",): decoder.embedding,
        ("layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj"): (
            layer.attention.qkv
        ),
        ("layers.0.self_attn.o_proj",): layer.attention.o,
        ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"): layer.mlp.gate_up,
        ("layers.0.mlp.down_proj",): layer.mlp.down,
    }
    for names, weight in found.items():
        assert isinstance(weight, PackedWeight)
        # Beside layers in 4 bits the embedding has 8.
        expected = "int8" if "embed_tokens" in names and weight_format == "int4" else weight_format
        assert weight.format == expected
        stored = torch.cat([tensors[f"model.{name}.weight"] for name in names])
        assert torch.equal(weight.dequantize(), VALUES[expected](stored)), names


@each_dtype
def test_on_a_cpu_weights_and_cache_stay_as_stored_and_activations_are_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    make_checkpoint(tmp_path, dtype=dtype)
    engine = start_engine(tmp_path)
    assert (engine.info.dtype, engine.info.weights) == ("float32", STORED[dtype])
    tensors = load_file(tmp_path / "model.safetensors")
    check_weights(engine, tensors, STORED[dtype])
    assert {cache.dtype for cache in (*engine.model.cache.k, *engine.model.cache.v)} == {dtype}
    layer = engine.model.decoder.layers[0]
    assert torch.equal(layer.input_norm, tensors["model.layers.0.input_layernorm.weight"].float())
    assert layer.attention.qkv_bias is not None
    assert layer.attention.qkv_bias.dtype == torch.float32


@pytest.mark.parametrize("weights", VALUES)
def test_weights_take_the_format_that_is_asked_for(bf16_folder: Path, weights: str) -> None:
    engine = start_engine(bf16_folder, weights=weights)
    assert engine.info.weights == weights
    check_weights(engine, load_file(bf16_folder / "model.safetensors"), weights)
    assert len(greedy(engine, PROMPT, 8)) == 8


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_tied_head_is_the_embedding(bf16_folder: Path, tmp_path: Path, weights: str) -> None:
    tied = start_engine(bf16_folder, weights=weights).model.decoder
    assert tied.head is tied.embedding
    make_checkpoint(tmp_path, tie_word_embeddings=False)
    untied = start_engine(tmp_path, weights=weights).model.decoder
    head = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    assert isinstance(untied.head, PackedWeight)
    assert torch.equal(untied.head.dequantize(), quantize_int8(head).dequantize())


def test_a_step_reads_the_bits_that_the_format_has(bf16_folder: Path) -> None:
    bits = {"f32": 32, "bf16": 16, "f16": 16, "int8": 8.5, "int4": 4.5}
    for weights, each in bits.items():
        work = Work.of(start_engine(bf16_folder, weights=weights).model)
        # Only the head's 199 rows do not fill their panels of 16.
        head = work.head_weights // 199 * 208
        of_head = bits["int8"] if weights == "int4" else each
        assert work.weight_bytes * 8 == work.layer_weights * each + head * of_head


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_dtype_on_a_cpu_means_plain_tensors_of_it(bf16_folder: Path, dtype: str) -> None:
    engine = start_engine(bf16_folder, dtype=dtype)
    wanted = getattr(torch, dtype)
    assert engine.info.dtype == dtype
    assert engine.model.decoder.head.dtype == wanted  # type: ignore[union-attr]
    assert engine.model.cache.k[0].dtype == wanted


def test_the_reference_linear_is_given_plain_float32(bf16_folder: Path) -> None:
    decoder = start_engine(bf16_folder, {"linear": "reference"}).model.decoder
    stored = load_file(bf16_folder / "model.safetensors")["model.embed_tokens.weight"]
    assert isinstance(decoder.embedding, Tensor)
    assert torch.equal(decoder.embedding, stored.float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_the_cache_takes_the_dtype_that_is_asked_for(bf16_folder: Path, dtype: str) -> None:
    engine = start_engine(bf16_folder, kv_cache_dtype=dtype, kv_cache_tokens=256)
    logits = engine.logits(PROMPT)
    k = engine.model.cache.k[0]
    assert k.dtype == getattr(torch, dtype)
    assert logits.isfinite().all()


def test_a_smaller_cache_dtype_holds_more_tokens_of_the_same_memory(
    bf16_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwell.runtime.loader.host_cache_budget", lambda: 1 << 18)
    wide = start_engine(bf16_folder, kv_cache_dtype="float32").info.kv_cache_tokens
    narrow = start_engine(bf16_folder, kv_cache_dtype="float16").info.kv_cache_tokens
    assert narrow == pytest.approx(2 * wide, abs=16)
    engine = start_engine(bf16_folder, kv_cache_dtype="int8")
    vector = engine.model.config.head_dim
    assert engine.info.kv_cache_tokens == pytest.approx(narrow * 2 * vector / (vector + 4), abs=32)
    held = sum(cache.nbytes for cache in (*engine.model.cache.k, *engine.model.cache.v))
    a_token = Work.of(engine.model).cache_bytes_per_token
    assert a_token * engine.info.kv_cache_tokens == held <= (1 << 18) + 16 * a_token


def test_an_int8_cache_moves_logits_little(bf16_folder: Path) -> None:
    ids = [i * 7 % 199 for i in range(150)]

    def logits(dtype: str, kernels: dict[str, str] | None = None) -> Tensor:
        return start_engine(bf16_folder, kernels, weights="f32", kv_cache_dtype=dtype).logits(ids)

    exact = logits("float32")

    def error(approximate: Tensor) -> float:
        return float((approximate - exact).norm() / exact.norm())

    # Half a step of 1/127 of the largest element, beside 2^-9 of each: 2 to 3 times as far.
    assert 1 < error(logits("int8")) / error(logits("bfloat16")) < 4
    assert error(logits("int8")) < 0.02
    reference = {"rope": "reference", "attention": "reference"}
    assert error(logits("int8", reference)) < 0.02


@pytest.mark.parametrize("eager", [False, True])
def test_an_int8_cache_gives_the_same_bits_however_a_prompt_is_cut(
    bf16_folder: Path, eager: bool
) -> None:
    ids = [i % 199 for i in range(70)]

    def logits(size: int) -> Tensor:
        return start_engine(
            bf16_folder, kv_cache_dtype="int8", max_batch_tokens=size, eager=eager
        ).logits(ids)

    whole = logits(128)
    for size in (1, 7, 33):
        assert torch.equal(logits(size), whole)


def test_refuses_columns_that_are_no_groups(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, intermediate_size=100)
    with pytest.raises(EngineStartError, match=r"down_proj.weight .* int8: .* of 32, got 100"):
        start_engine(tmp_path, weights="int8")
    assert start_engine(tmp_path).info.weights == "f32"


def test_refuses_weights_that_the_format_cannot_hold(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e9
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(EngineStartError, match=r"layers\.1\.mlp\.up_proj.* f16: .*too large"):
        start_engine(tmp_path, weights="f16")


@pytest.mark.parametrize(
    ("kernels", "options"),
    [
        ({}, {"dtype": "bfloat16"}),
        ({"linear": "reference"}, {}),
        ({"embedding": lambda ids, table: table[ids]}, {}),
    ],
    ids=["half activations", "reference linear", "an embedding of the user's"],
)
def test_refuses_formats_that_the_ops_do_not_take(
    bf16_folder: Path, kernels: dict, options: dict[str, str]
) -> None:
    start_engine(bf16_folder, kernels, **options)
    with pytest.raises(EngineStartError, match="weights int8 need the native linear"):
        start_engine(bf16_folder, kernels, weights="int8", **options)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_on_gpus_everything_has_the_dtype_of_the_checkpoint(stored: str) -> None:
    gpu, dtype = torch.device("cuda"), getattr(torch, stored)
    precision = choose_precision(EngineOptions(model="x"), stored, gpu, {})
    assert (precision.activations, precision.weights, precision.cache) == (dtype, None, dtype)
    same = EngineOptions(model="x", kv_cache_dtype=stored)
    assert choose_precision(same, stored, gpu, {}) == precision


@pytest.mark.parametrize("weights", VALUES)
def test_refuses_formats_on_gpus(weights: str) -> None:
    options = EngineOptions(model="x", weights=weights)  # type: ignore[arg-type]
    with pytest.raises(EngineStartError, match=f"weights {weights} need .* Use weights auto"):
        choose_precision(options, "bfloat16", torch.device("cuda"), {})


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_refuses_another_cache_dtype_on_gpus(dtype: str) -> None:
    options = EngineOptions(model="x", kv_cache_dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(EngineStartError, match=f"kv_cache_dtype {dtype} is not served on GPUs"):
        choose_precision(options, "bfloat16", torch.device("cuda"), {})


def test_llm_takes_the_options(bf16_folder: Path) -> None:
    llm = LLM(
        bf16_folder,
        device="cpu",
        weights="int4",
        weight_cache=False,
        kv_cache_dtype="float16",
        kv_cache_tokens=256,
    )
    assert llm.info.weights == "int4"
    assert torch.equal(
        llm.logits(PROMPT),
        start_engine(bf16_folder, weights="int4", kv_cache_dtype="float16").logits(PROMPT),
    )
