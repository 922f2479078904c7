"""The cases of the fused ops: steps of one token, and of as many as they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from qwell.bench.kernels.case import Case, cache, ints, meta
from qwell.bench.kernels.models import MODELS
from qwell.kernels.fused_ops import MAX_FUSED_TOKENS, Splits
from qwell.kernels.triton.configs.attention_decode import SPLIT
from qwell.kernels.triton.linear_add import linear_add
from qwell.kernels.triton.merge_linear_add import merge_linear_add
from qwell.kernels.triton.norm_linear import norm_linear
from qwell.kernels.triton.norm_linear_silu_mul import norm_linear_silu_mul
from qwell.kernels.triton.rope_attention import rope_attention
from qwell.runtime.kv_cache import BLOCK_SIZE

CONTEXT = 40960
"""Launches of captured steps are sized for the longest sequence that a model takes."""

STEPS = (1, MAX_FUSED_TOKENS)


def _product(tokens: int, n: int, k: int) -> tuple[int, int]:
    """Bytes and operations of a weight [n, k] that meets so many tokens."""
    return 2 * (n * k + tokens * (n + k)), 2 * tokens * n * k


def _norm_linear(_: str) -> Iterator[Case]:
    for model in MODELS:
        n, k = (model.heads + 2 * model.kv_heads) * model.head_dim, model.hidden
        for tokens in STEPS:
            moved, flops = _product(tokens, n, k)
            run = partial(norm_linear, meta(tokens, k), meta(k), 1e-6, meta(n, k))
            yield Case(
                f"{tokens} x {k} x {n}", run, moved, flops, wide_kernels=("norm_linear_kernel",)
            )


def _norm_linear_silu_mul(_: str) -> Iterator[Case]:
    for model in MODELS:
        n, k = 2 * model.mlp, model.hidden
        for tokens in STEPS:
            moved, flops = _product(tokens, n, k)
            run = partial(norm_linear_silu_mul, meta(tokens, k), meta(k), 1e-6, meta(n, k))
            wide = ("norm_linear_silu_mul_kernel",)
            yield Case(f"{tokens} x {k} x {n}", run, moved, flops, wide_kernels=wide)


def _linear_add(_: str) -> Iterator[Case]:
    for model in MODELS:
        n, k = model.hidden, model.mlp
        for tokens in STEPS:
            moved, flops = _product(tokens, n, k)
            run = partial(linear_add, meta(tokens, k), meta(n, k), meta(tokens, n))
            wide = ("linear_add_kernel",)
            yield Case(f"{tokens} x {k} x {n}", run, moved, flops, wide_kernels=wide)


def _merge_linear_add(arch: str) -> Iterator[Case]:
    for model in MODELS:
        n, k = model.hidden, model.heads * model.head_dim
        for tokens in (1, 2, 4):
            shape = (tokens, CONTEXT // SPLIT, model.heads)
            splits = Splits(
                values=meta(*shape, model.head_dim, dtype=torch.float32),
                stats=meta(*shape, 2, dtype=torch.float32),
                seq_lens=ints(tokens),
                window=None,
            )
            moved, flops = _product(tokens, n, k)
            run = partial(merge_linear_add, splits, meta(n, k), meta(tokens, n))
            # Every thread loads the statistics of the splits that it takes, 8 bytes for 32 of
            # values; the 16 rows of a weight that outweigh them spill registers of NVIDIA's here.
            spills = tokens == 4 and arch.startswith("sm_")
            yield Case(
                f"{tokens} x {k} x {n}",
                run,
                moved,
                flops,
                wide_kernels=("merge_linear_add_kernel",),
                least_wide_share=0.85 if spills else 0.9,
            )


def _rope_attention(arch: str) -> Iterator[Case]:
    for model in MODELS:
        for norm in (meta(model.head_dim), None):
            # Without norms Triton 3.6 loads 17 % of it narrowly on AMD; later ones 7 %.
            least = 0.8 if norm is None and arch.startswith("gfx") else 0.9
            yield _rope_attention_case(model.heads, model.kv_heads, model.head_dim, norm, least)


def _rope_attention_case(
    heads: int, kv_heads: int, head_dim: int, norm: torch.Tensor | None, least_wide_share: float
) -> Case:
    tokens = MAX_FUSED_TOKENS
    width = (heads + 2 * kv_heads) * head_dim
    run = partial(
        rope_attention,
        meta(tokens, width),
        ints(tokens),
        meta(CONTEXT, head_dim, dtype=torch.float32),
        norm,
        norm,
        1e-6,
        *cache(tokens * CONTEXT, kv_heads, head_dim, torch.bfloat16),
        ints(tokens),
        ints(tokens, CONTEXT // BLOCK_SIZE),
        ints(tokens),
        CONTEXT,
        head_dim**-0.5,
    )
    return Case(
        f"{tokens} of {CONTEXT}, {heads}+{kv_heads} heads{'' if norm is None else ' normed'}",
        run,
        4 * tokens * CONTEXT * kv_heads * head_dim,
        flops=4 * tokens * CONTEXT * heads * head_dim,
        tensor_kernels=("rope_attention_kernel",),
        wide_kernels=("rope_attention_kernel",),
        least_wide_share=least_wide_share,
    )


FUSED_CASES: Mapping[str, Callable[[str], Iterator[Case]]] = {
    "norm_linear": _norm_linear,
    "rope_attention": _rope_attention,
    "merge_linear_add": _merge_linear_add,
    "norm_linear_silu_mul": _norm_linear_silu_mul,
    "linear_add": _linear_add,
}
"""Op of kernels/fused_ops.py -> its cases for an architecture."""
