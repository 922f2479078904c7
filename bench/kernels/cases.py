"""What the kernel reports run: every op at the shapes of real models.

One function an op: for an architecture, cases that between them reach every row of the op's
launch table. Tensors are on the meta device; a case is run to see what it launches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from qwell.bench.kernels.case import Case, cache, ints, meta
from qwell.bench.kernels.fused_cases import FUSED_CASES
from qwell.bench.kernels.models import MODELS, Model
from qwell.kernels.ops import MAX_TOP_LOGPROBS, Extent
from qwell.kernels.triton.adjust_logits import adjust_logits
from qwell.kernels.triton.attention import attention
from qwell.kernels.triton.configs import attention_decode as decode_config
from qwell.kernels.triton.configs import attention_prefill as prefill_config
from qwell.kernels.triton.configs import embedding as embedding_config
from qwell.kernels.triton.configs import linear as linear_config
from qwell.kernels.triton.configs import rms_norm as rms_norm_config
from qwell.kernels.triton.configs import silu_mul as silu_mul_config
from qwell.kernels.triton.embedding import embedding
from qwell.kernels.triton.linear import linear
from qwell.kernels.triton.logprobs import logprobs
from qwell.kernels.triton.rms_norm import rms_norm
from qwell.kernels.triton.rope import rope
from qwell.kernels.triton.sample import sample
from qwell.kernels.triton.silu_mul import silu_mul
from qwell.kernels.weights import Fp8Weight, IntWeight, Weight
from qwell.runtime.kv_cache import BLOCK_SIZE

BATCH = 256
"""Sequences of a step that decodes: a full server."""

CHUNK = 4096
"""Tokens of a step that prefills."""

CONTEXT = 4096
"""Tokens of each sequence that decodes."""

LEAST_WIDE_SHARE_AMD = 0.75
"""For groups of 32: each thread of AMD's matrix instructions needs four scales beside 8 weights."""

Row = TypeVar("Row")


def _doubles(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.float64)


def _rows(table: Mapping[str, tuple[Row, ...]], arch: str) -> tuple[Row, ...]:
    return table.get(arch, table["default"])


def _widths(of_models: Iterable[int], limits: Iterable[int]) -> list[int]:
    """Widths of the models and the widest that each row of a table serves, if it has a limit."""
    return sorted({*of_models, *(limit for limit in limits if limit != sys.maxsize)})


def _rms_norm(arch: str) -> Iterator[Case]:
    limits = (row.max_width for row in _rows(rms_norm_config.ROWS, arch))
    for width in _widths((model.hidden for model in MODELS), limits):
        x, weight = meta(CHUNK, width), meta(width)
        size = 2 * CHUNK * width
        wide = ("rms_norm_kernel",)
        yield Case(f"{width}", partial(rms_norm, x, weight, 1e-6), 2 * size, wide_kernels=wide)
        added = partial(rms_norm, x, weight, 1e-6, x)
        yield Case(f"{width} + residual", added, 4 * size, wide_kernels=wide)


def _embedding(arch: str) -> Iterator[Case]:
    limits = (row.max_width for row in _rows(embedding_config.ROWS, arch))
    for width in _widths((model.hidden for model in MODELS), limits):
        run = partial(embedding, ints(CHUNK), meta(MODELS[0].vocabulary, width))
        yield Case(f"{width}", run, 4 * CHUNK * width)


def _silu_mul(arch: str) -> Iterator[Case]:
    limits = (row.max_width for row in _rows(silu_mul_config.ROWS, arch))
    for width in _widths((model.mlp for model in MODELS), limits):
        run = partial(silu_mul, meta(CHUNK, 2 * width))
        yield Case(f"{width}", run, 6 * CHUNK * width, wide_kernels=("silu_mul_kernel",))


def _linear(arch: str) -> Iterator[Case]:
    for place, row in enumerate(_rows(linear_config.DENSE, arch)):
        yield _linear_case("bf16", row, serves_few=place == 0)
    for place, row in enumerate(_rows(linear_config.PACKED, arch)):
        for weight_format in ("int8", "int4", "fp8"):
            yield _linear_case(weight_format, row, serves_few=place == 0)
        for weight_format in ("int8 g32", "int4 g32"):
            least = LEAST_WIDE_SHARE_AMD if arch.startswith("gfx") else 0.9
            yield _linear_case(weight_format, row, serves_few=place == 0, least_wide_share=least)
    for row in _rows(linear_config.FLOAT32, arch):
        yield _linear_case("fp32", row, serves_few=False)


def _linear_case(
    weight_format: str,
    row: linear_config.Settings,
    *,
    serves_few: bool,
    least_wide_share: float = 0.9,
) -> Case:
    """As many tokens as the row serves; few are bound by reading weights."""
    small, large = MODELS
    # A weight that is small enough for its sums to be spread, or one that is summed in parts.
    n, k = (small.hidden, small.mlp) if row.spread else (large.hidden, large.mlp)
    tokens = min(row.max_rows, CHUNK)
    dtype = torch.float32 if weight_format == "fp32" else torch.bfloat16
    weight, weight_bytes = _weight(weight_format, n, k)
    kernel = "linear_dense_kernel" if isinstance(weight, Tensor) else "linear_packed_kernel"
    return Case(
        f"{weight_format} {tokens} x {k} x {n}",
        partial(linear, meta(tokens, k, dtype=dtype), weight),
        weight_bytes + dtype.itemsize * tokens * (n + k),
        flops=2 * tokens * n * k,
        factors="fp32" if weight_format == "fp32" else "bf16",
        tensor_kernels=() if weight_format == "fp32" else (kernel,),
        wide_kernels=(kernel,) if serves_few else (),
        least_wide_share=least_wide_share,
    )


def _weight(weight_format: str, n: int, k: int) -> tuple[Weight, int]:
    """A weight [n, k] and its bytes.

    Groups and blocks are those of Qwen's own checkpoints, and g32 those of kernels/quantize.py.
    """
    tiles, words8 = -(-k // 128), ints(-(-k // 128), n, 32)

    def int_weight(bits: int, group: int) -> IntWeight:
        words = words8 if bits == 8 else meta(tiles, n, 32, dtype=torch.int16)
        scales = meta(k // group, n, dtype=torch.float16)
        zeros = meta(k // group, n, dtype=torch.uint8) if bits == 4 else None
        return IntWeight(words, scales, zeros, bits, columns=k)

    formats: dict[str, tuple[int, Weight]] = {
        "fp32": (32, meta(n, k, dtype=torch.float32)),
        "bf16": (16, meta(n, k)),
        "int8": (8, int_weight(8, 128)),
        "int4": (4, int_weight(4, 128)),
        "int8 g32": (8, int_weight(8, 32)),
        "int4 g32": (4, int_weight(4, 32)),
        "fp8": (8, Fp8Weight(words8, meta(-(-n // 128), tiles, dtype=torch.float32), columns=k)),
    }
    bits, weight = formats[weight_format]
    return weight, n * k * bits // 8


def _rope(_: str) -> Iterator[Case]:
    for model in MODELS:
        width = (model.heads + 2 * model.kv_heads) * model.head_dim
        for norm in (meta(model.head_dim), None):
            run = partial(
                rope,
                meta(CHUNK, width),
                ints(CHUNK),
                meta(40960, model.head_dim, dtype=torch.float32),
                norm,
                norm,
                1e-6,
                *cache(CHUNK, model.kv_heads, model.head_dim, torch.bfloat16),
                ints(CHUNK),
            )
            yield Case(
                f"{model.heads}+{model.kv_heads} heads{'' if norm is None else ' normed'}",
                run,
                4 * CHUNK * width + 4 * CHUNK * model.head_dim,
                wide_kernels=("rope_kernel",),
            )


def _attention(arch: str) -> Iterator[Case]:
    model = MODELS[1]
    own = (model.head_dim, 2)
    for head in _heads(own, _rows(prefill_config.ROWS, arch)):
        yield _prefill(model, *head)
    for head in _heads(own, _rows(decode_config.ROWS, arch)):
        yield _decode(model, *head)
    yield _prefill(model, *own, window=1024)
    yield _decode(model, *own, window=1024)


def _heads(
    own: tuple[int, int], rows: Iterable[prefill_config.Settings | decode_config.Settings]
) -> list[tuple[int, int]]:
    """Head and element sizes of the model and the largest that each row of a table serves."""
    return sorted({own, *((row.max_head_dim, row.max_element_size) for row in rows)})


def _prefill(model: Model, head_dim: int, size: int, window: int | None = None) -> Case:
    """One sequence of CHUNK new tokens."""
    extent = Extent(num_decodes=0, max_query_len=CHUNK, max_seq_len=CHUNK)
    seen = CHUNK * CHUNK // 2 if window is None else CHUNK * window
    kernel = "attention_prefill_kernel"
    return Case(
        f"{CHUNK} new, {_head(head_dim, size, window)}",
        _attention_run(model, head_dim, size, window, 1, CHUNK, extent),
        2 * size * CHUNK * (model.heads + model.kv_heads) * head_dim,
        flops=4 * seen * model.heads * head_dim,
        factors="bf16" if size == 2 else "fp32",
        tensor_kernels=(kernel,) if size == 2 else (),
    )


def _decode(model: Model, head_dim: int, size: int, window: int | None = None) -> Case:
    """BATCH sequences of CONTEXT tokens, one of them new."""
    extent = Extent(num_decodes=BATCH, max_query_len=1, max_seq_len=CONTEXT)
    seen = BATCH * min(CONTEXT, window or CONTEXT)
    kernel = "attention_decode_kernel"
    return Case(
        f"{BATCH} of {CONTEXT}, {_head(head_dim, size, window)}",
        _attention_run(model, head_dim, size, window, BATCH, BATCH, extent),
        2 * size * (seen * model.kv_heads + BATCH * model.heads) * head_dim,
        flops=4 * seen * model.heads * head_dim,
        factors="bf16" if size == 2 else "fp32",
        tensor_kernels=(kernel,) if size == 2 else (),
        wide_kernels=(kernel,),
    )


def _head(head_dim: int, size: int, window: int | None) -> str:
    dtype = "bf16" if size == 2 else "fp32"
    return f"D {head_dim} {dtype}" + ("" if window is None else f" window {window}")


def _attention_run(
    model: Model,
    head_dim: int,
    size: int,
    window: int | None,
    sequences: int,
    tokens: int,
    extent: Extent,
) -> Callable[[], object]:
    dtype = torch.bfloat16 if size == 2 else torch.float32
    blocks = -(-extent.max_seq_len // BLOCK_SIZE)
    return partial(
        attention,
        meta(tokens, model.heads, head_dim, dtype=dtype),
        *cache(sequences * extent.max_seq_len, model.kv_heads, head_dim, dtype),
        ints(sequences, blocks),
        ints(sequences + 1),
        ints(sequences),
        extent,
        head_dim**-0.5,
        window,
    )


def _adjust_logits(_: str) -> Iterator[Case]:
    listed = BATCH * 1000
    one, counts = _doubles(BATCH), ints(BATCH)
    run = partial(
        adjust_logits,
        meta(BATCH, MODELS[0].vocabulary, dtype=torch.float32),
        ids=ints(listed),
        counts=ints(listed),
        biases=_doubles(listed),
        cu_ids=ints(BATCH + 1),
        newest=counts,
        repetition_penalty=one,
        presence_penalty=one,
        frequency_penalty=one,
        only_listed=counts,
    )
    # A listed logit is read and written, and moves a sector of 32 bytes each time.
    yield Case(f"{BATCH} rows of 1000 ids", run, (2 * 32 + 16) * listed, factors="fp32")


def _sample(_: str) -> Iterator[Case]:
    vocabulary = MODELS[0].vocabulary
    one = _doubles(BATCH)
    run = partial(
        sample,
        meta(BATCH, vocabulary, dtype=torch.float32),
        temperature=one,
        top_k=ints(BATCH),
        top_p=one,
        min_p=one,
        typical_p=one,
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
    logits = meta(BATCH, vocabulary, dtype=torch.float32)
    yield Case(
        f"{BATCH} rows",
        partial(logprobs, logits, ints(BATCH), MAX_TOP_LOGPROBS),
        4 * BATCH * vocabulary,
        factors="fp32",
        wide_kernels=("logprobs_kernel",),
    )


CASES: Mapping[str, Callable[[str], Iterator[Case]]] = {
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": _attention,
    "silu_mul": _silu_mul,
    "adjust_logits": _adjust_logits,
    "sample": _sample,
    "logprobs": _logprobs,
    **FUSED_CASES,
}
"""Op -> its cases for an architecture."""
