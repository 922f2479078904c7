"""What the kernel reports run: every op at the shapes of real models.

One function an op: for an architecture, cases that between them reach every row of the op's
launch table. Tensors are on the meta device; a case is run to see what it launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qwell.kernels.ops import MAX_TOP_LOGPROBS
from qwell.kernels.triton.configs import rms_norm as rms_norm_config
from qwell.kernels.triton.logprobs import logprobs
from qwell.kernels.triton.rms_norm import rms_norm
from qwell.kernels.triton.sample import sample

BATCH = 256
"""Sequences of a step that decodes: a full server."""

CHUNK = 4096
"""Tokens of a step that prefills."""


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


def _rms_norm(arch: str) -> Iterator[Case]:
    rows = rms_norm_config.ROWS.get(arch, rms_norm_config.ROWS["default"])
    for width in sorted({*(model.hidden for model in MODELS), *(row.max_width for row in rows)}):
        x, weight = _meta(CHUNK, width), _meta(width)
        size = 2 * CHUNK * width
        wide = ("rms_norm_kernel",)
        yield Case(f"{width}", partial(rms_norm, x, weight, 1e-6), 2 * size, wide_kernels=wide)
        added = partial(rms_norm, x, weight, 1e-6, x)
        yield Case(f"{width} + residual", added, 4 * size, wide_kernels=wide)


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
    "rms_norm": _rms_norm,
    "sample": _sample,
    "logprobs": _logprobs,
}
"""Op -> its cases for an architecture."""
