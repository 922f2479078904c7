"""What the kernel reports run: every op at the shapes of real models.

One function an op: for an architecture, cases that between them reach every row of the op's
launch table. Tensors are on the meta device; a case is run to see what it launches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from qwell.kernels.ops import MAX_TOP_LOGPROBS
from qwell.kernels.triton.configs import embedding as embedding_config
from qwell.kernels.triton.configs import linear as linear_config
from qwell.kernels.triton.configs import rms_norm as rms_norm_config
from qwell.kernels.triton.configs import silu_mul as silu_mul_config
from qwell.kernels.triton.embedding import embedding
from qwell.kernels.triton.linear import linear
from qwell.kernels.triton.logprobs import logprobs
from qwell.kernels.triton.rms_norm import rms_norm
from qwell.kernels.triton.sample import sample
from qwell.kernels.triton.silu_mul import silu_mul
from qwell.kernels.weights import Fp8Weight, IntWeight, Weight

BATCH = 256
"""Sequences of a step that decodes: a full server."""

CHUNK = 4096
"""Tokens of a step that prefills."""


SMALL_BATCH = 32
"""Up to so many tokens linear is bound by reading weights."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Model:
    """Sizes of a model: the letters of kernels/ops.py spelt out."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int


MODELS = (
    Model("Qwen3-0.6B", 1024, 16, 8, 128, 3072, 151936),
    Model("Qwen3-8B", 4096, 32, 8, 128, 12288, 151936),
)


@dataclass(frozen=True)
class Case:
    """A call of an op whose launches are looked at.

    Attributes:
        run: calls the op on meta tensors.
        bytes_moved: between memory and chip, if each input and output goes once.
        flops: multiplications and additions, both counted.
        factors: type of what is multiplied: bf16, fp32, int8 or fp8.
        tensor_kernels: kernels that must use matrix units.
        wide_kernels: kernels that must load 128 bits at a time.
    """

    name: str
    run: Callable[[], object]
    bytes_moved: int
    flops: int = 0
    factors: str = "bf16"
    tensor_kernels: tuple[str, ...] = ()
    wide_kernels: tuple[str, ...] = ()


def _meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _ints(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.int32)


def _doubles(*shape: int) -> Tensor:
    return _meta(*shape, dtype=torch.float64)


def _rows(table: Mapping[str, tuple[Row, ...]], arch: str) -> tuple[Row, ...]:
    return table.get(arch, table["default"])


def _widths(of_models: Iterable[int], limits: Iterable[int]) -> list[int]:
    """Widths of the models and the widest that each row of a table serves, if it has a limit."""
    return sorted({*of_models, *(limit for limit in limits if limit != sys.maxsize)})


def _rms_norm(arch: str) -> Iterator[Case]:
    limits = (row.max_width for row in _rows(rms_norm_config.ROWS, arch))
    for width in _widths((model.hidden for model in MODELS), limits):
        x, weight = _meta(CHUNK, width), _meta(width)
        size = 2 * CHUNK * width
        wide = ("rms_norm_kernel",)
        yield Case(f"{width}", partial(rms_norm, x, weight, 1e-6), 2 * size, wide_kernels=wide)
        added = partial(rms_norm, x, weight, 1e-6, x)
        yield Case(f"{width} + residual", added, 4 * size, wide_kernels=wide)


def _embedding(arch: str) -> Iterator[Case]:
    limits = (row.max_width for row in _rows(embedding_config.ROWS, arch))
    for width in _widths((model.hidden for model in MODELS), limits):
        run = partial(embedding, _ints(CHUNK), _meta(MODELS[0].vocabulary, width))
        yield Case(f"{width}", run, 4 * CHUNK * width)


def _silu_mul(arch: str) -> Iterator[Case]:
    limits = (row.max_width for row in _rows(silu_mul_config.ROWS, arch))
    for width in _widths((model.mlp for model in MODELS), limits):
        run = partial(silu_mul, _meta(CHUNK, 2 * width))
        yield Case(f"{width}", run, 6 * CHUNK * width, wide_kernels=("silu_mul_kernel",))


def _linear(arch: str) -> Iterator[Case]:
    for row in _rows(linear_config.DENSE, arch):
        yield _linear_case("bf16", row)
    for row in _rows(linear_config.PACKED, arch):
        for weight_format in ("int8", "int4", "fp8"):
            yield _linear_case(weight_format, row)
    for row in _rows(linear_config.FLOAT32, arch):
        yield _linear_case("fp32", row)


def _linear_case(weight_format: str, row: linear_config.Settings) -> Case:
    small, large = MODELS
    # A weight that is small enough for its sums to be spread, or the one that takes longest.
    n, k = (small.hidden, small.mlp) if row.spread else (2 * large.mlp, large.hidden)
    tokens = min(row.max_rows, CHUNK)
    dtype = torch.float32 if weight_format == "fp32" else torch.bfloat16
    weight, weight_bytes = _weight(weight_format, n, k)
    kernel = "linear_dense_kernel" if isinstance(weight, Tensor) else "linear_packed_kernel"
    return Case(
        f"{weight_format} {tokens} x {k} x {n}",
        partial(linear, _meta(tokens, k, dtype=dtype), weight),
        weight_bytes + dtype.itemsize * tokens * (n + k),
        flops=2 * tokens * n * k,
        factors="fp32" if weight_format == "fp32" else "bf16",
        tensor_kernels=() if weight_format == "fp32" else (kernel,),
        wide_kernels=(kernel,) if tokens <= SMALL_BATCH else (),
    )


def _weight(weight_format: str, n: int, k: int) -> tuple[Weight, int]:
    """A weight [n, k] and its bytes; groups and blocks are those of Qwen's own checkpoints."""
    tiles, group = -(-k // 128), 128
    words8 = _ints(tiles, n, 32)
    scales = _meta(k // group, n, dtype=torch.float16)
    zeros = _meta(k // group, n, dtype=torch.uint8)
    formats: dict[str, Weight] = {
        "fp32": _meta(n, k, dtype=torch.float32),
        "bf16": _meta(n, k),
        "int8": IntWeight(words8, scales, None, bits=8, columns=k),
        "int4": IntWeight(_meta(tiles, n, 32, dtype=torch.int16), scales, zeros, 4, columns=k),
        "fp8": Fp8Weight(words8, _meta(-(-n // 128), tiles, dtype=torch.float32), columns=k),
    }
    bits = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4, "fp8": 8}
    return formats[weight_format], n * k * bits[weight_format] // 8


def _sample(_: str) -> Iterator[Case]:
    vocabulary = MODELS[0].vocabulary
    one = _doubles(BATCH)
    run = partial(
        sample,
        _meta(BATCH, vocabulary, dtype=torch.float32),
        temperature=one,
        top_k=_ints(BATCH),
        top_p=one,
        min_p=one,
        repetition_penalty=one,
        seen_ids=_ints(BATCH * 1000),
        cu_seen=_ints(BATCH + 1),
        uniform=one,
    )
    yield Case(
        f"{BATCH} rows",
        run,
        4 * BATCH * vocabulary,
        factors="fp32",
        wide_kernels=("sample_kernel",),
    )


def _logprobs(_: str) -> Iterator[Case]:
    vocabulary = MODELS[0].vocabulary
    logits = _meta(BATCH, vocabulary, dtype=torch.float32)
    yield Case(
        f"{BATCH} rows",
        partial(logprobs, logits, _ints(BATCH), MAX_TOP_LOGPROBS),
        4 * BATCH * vocabulary,
        factors="fp32",
        wide_kernels=("logprobs_kernel",),
    )


CASES: Mapping[str, Callable[[str], Iterator[Case]]] = {
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "silu_mul": _silu_mul,
    "sample": _sample,
    "logprobs": _logprobs,
}
"""Op -> its cases for an architecture."""
