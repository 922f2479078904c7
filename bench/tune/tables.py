"""Every launch table's space: what its module asks of rows, and the shapes of the kernel report."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton

from qwell.bench.gpu.calls import Step, decode, prefill
from qwell.bench.gpu.fused_calls import FusedCalls
from qwell.bench.kernels.models import MODELS, Model
from qwell.bench.tune.space import Load, Space
from qwell.kernels.fused_ops import MAX_FUSED_TOKENS
from qwell.kernels.triton.configs import (
    attention_decode,
    attention_prefill,
    embedding,
    gemv,
    linear,
    logprobs,
    merge_linear_add,
    rms_norm,
    rope,
    sample,
    silu_mul,
)
from qwell.kernels.triton.configs.table_file import NO_LIMIT

CHUNK = 4096
"""Tokens of a step that prefills."""

_SMALL, _LARGE = MODELS
_BF16, _FP32 = torch.bfloat16, torch.float32

Loads = Callable[[Sequence[Any]], Iterator[Load]]


def _threads(arch: str, row: Any) -> int:
    threads: int = row.num_warps * (64 if arch.startswith("gfx") else 32)
    return threads


def _wide_columns(arch: str, row: embedding.Settings | silu_mul.Settings) -> bool:
    # No program is wider than all rows that it serves.
    return 8 * _threads(arch, row) <= row.block <= row.max_width


def _wide_rows(arch: str, row: rms_norm.Settings) -> bool:
    columns: int = triton.next_power_of_2(row.max_width)
    return 8 * _threads(arch, row) <= columns


def _wide_pairs(arch: str, row: rope.Settings) -> bool:
    return 8 * _threads(arch, row) <= row.block


def _wide_logits(arch: str, row: sample.Settings | logprobs.Settings) -> bool:
    return 4 * _threads(arch, row) <= row.block and _threads(arch, row) <= 1024


def _whole_instructions(arch: str, row: linear.Settings) -> bool:
    # On AMD GPUs the launch names the instruction, whose threads are twice as many.
    of_warp = (16, 32) if arch.startswith("gfx") else (16,)
    # A tile lies in one row of FP8 blocks.
    whole = row.block_n in (64, 128) and row.block_n // row.num_warps in of_warp
    return whole and row.block_m <= row.max_rows


def _wide_packed(arch: str, row: linear.Settings) -> bool:
    return _whole_instructions(arch, row) and row.block_m >= 32


def _wide_weights(arch: str, row: gemv.Settings | merge_linear_add.Settings) -> bool:
    return 8 * _threads(arch, row) <= row.block_k


def _wide_splits(arch: str, row: merge_linear_add.Settings) -> bool:
    # Twice the splits that a thread holds now; most rows with more spill registers.
    return _wide_weights(arch, row) and row.block_s * row.max_tokens <= 8


def _divides_split(_: str, row: attention_decode.Settings) -> bool:
    return row.block_n >= 16 and attention_decode.SPLIT % row.block_n == 0


def _anything(_arch: str, _row: attention_prefill.Settings) -> bool:
    return True


def _by_width(side: str) -> Loads:
    """Rows as wide as that side of the models, and as each row of the table serves at most."""

    def loads(rows: Sequence[Any]) -> Iterator[Load]:
        limits = {row.max_width for row in rows} - {NO_LIMIT}
        for width in sorted({*limits, *(getattr(model, side) for model in MODELS)}):
            model = replace(_SMALL, name=f"width {width}", **{side: width})
            for step in (decode(model, 64, 1), prefill(model, CHUNK)):
                yield Load({"max_width": width}, _BF16, step)

    return loads


def _by_tokens(dtype: torch.dtype, *cases: str) -> Loads:
    """As many tokens as each row serves at most, by a small weight and by the largest."""

    def loads(rows: Sequence[Any]) -> Iterator[Load]:
        for row in rows:
            tokens = min(row.max_rows, CHUNK)
            for n, k in ((_SMALL.hidden, _SMALL.mlp), (2 * _LARGE.mlp, _LARGE.hidden)):
                # The weight is gate_up, which there are calls of in every format.
                model = Model(f"{k} x {n}", k, 1, 1, 16, mlp=n // 2, vocabulary=16)
                yield Load({"max_rows": tokens}, dtype, prefill(model, tokens), cases)

    return loads


def _by_head(steps: Callable[[Model], tuple[Step, ...]]) -> Loads:
    """Heads of the large model, and the largest that each row of the table serves."""

    def loads(rows: Sequence[Any]) -> Iterator[Load]:
        limits = {(row.max_head_dim, row.max_element_size) for row in rows}
        for head_dim, size in sorted({(_LARGE.head_dim, _BF16.itemsize), *limits}):
            model = replace(_LARGE, name=f"D {head_dim}", head_dim=head_dim)
            needs = {"max_head_dim": head_dim, "max_element_size": size}
            for step in steps(model):
                yield Load(needs, _BF16 if size == _BF16.itemsize else _FP32, step)

    return loads


def _by_weight(rows: Sequence[Any]) -> Iterator[Load]:
    """The weights that the ops which share the table of gemv have in the models."""
    del rows  # each of them serves some of these
    for model in MODELS:
        qkv = (model.heads + 2 * model.kv_heads) * model.head_dim
        weights = {
            "norm_linear": qkv,
            "norm_linear_silu_mul": 2 * model.mlp,
            "linear_add": model.hidden,
        }
        for (op, n), batch in itertools.product(weights.items(), (1, MAX_FUSED_TOKENS)):
            yield Load({"max_n": n}, _BF16, decode(model, batch, 1024), (op,))


def _by_sequences(rows: Sequence[merge_linear_add.Settings]) -> Iterator[Load]:
    """As many sequences as each row serves at most, short and long ones."""
    for row, model in itertools.product(rows, MODELS):
        for context in (1024, 8192):
            step = decode(model, row.max_tokens, context)
            yield Load({"max_tokens": row.max_tokens}, _BF16, step)


def _always(*steps: Step) -> Loads:
    return lambda _: (Load({}, _BF16, step) for step in steps)


_COLUMNS = {"block": (256, 512, 1024, 2048, 4096), "num_warps": (1, 2, 4, 8)}
_PAIRS = {"block": (256, 512, 1024, 2048), "num_warps": (1, 2, 4, 8)}
_LOGITS = {"block": (1024, 2048, 4096, 8192), "num_warps": (4, 8, 16, 32)}
_TILES = {
    "block_m": (16, 32, 64, 128),
    "block_n": (64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4, 5),
    "spread": (False, True),
}
_KEYS = {"block_n": (16, 32, 64, 128), "num_warps": (2, 4, 8), "num_stages": (2, 3, 4)}
_WEIGHT_ROWS = {
    "block_n": (2, 4, 8, 16),
    "block_k": (512, 1024, 2048, 4096),
    "num_warps": (1, 2, 4, 8, 16),
}
_SPLITS = {
    "block_n": (4, 8, 16),
    "block_k": (1024, 2048, 4096),
    "block_s": (1, 2, 4),
    "num_warps": (4, 8),
}
_QUERIES = {"block_m": (16, 32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4)}

_ROTATED = _always(decode(_SMALL, 64, 1024), prefill(_LARGE, CHUNK))
_DRAWN = _always(*(decode(_SMALL, batch, 1) for batch in (1, 64, 256)))
# Prefill as well, because it takes its keys in the tiles of decode.
_DECODED = _by_head(lambda m: (decode(m, 64, 1024), decode(m, 1, 8192), prefill(m, CHUNK)))
_PREFILLED = _by_head(lambda m: (prefill(m, CHUNK), prefill(m, 512)))
_DENSE = _by_tokens(_BF16, "gate_up")
_PACKED = _by_tokens(_BF16, "int8", "int4", "fp8")
_FLOAT32 = _by_tokens(_FP32, "gate_up", "int8", "int4", "fp8")

_SPACES = (
    Space("embedding", embedding, _COLUMNS, _wide_columns, True, _by_width("hidden")),
    Space(
        "rms_norm",
        rms_norm,
        {"num_warps": (1, 2, 4, 8, 16)},
        _wide_rows,
        same_bits=False,
        loads=_by_width("hidden"),
    ),
    Space("linear", linear, _TILES, _whole_instructions, True, _DENSE, "DENSE"),
    Space("linear", linear, _TILES, _wide_packed, True, _PACKED, "PACKED"),
    Space("linear", linear, _TILES, _whole_instructions, True, _FLOAT32, "FLOAT32"),
    Space("rope", rope, _PAIRS, _wide_pairs, True, _ROTATED),
    Space("attention", attention_decode, _KEYS, _divides_split, False, _DECODED),
    Space("attention", attention_prefill, _QUERIES, _anything, True, _PREFILLED),
    Space("silu_mul", silu_mul, _COLUMNS, _wide_columns, True, _by_width("mlp")),
    Space("sample", sample, _LOGITS, _wide_logits, True, _DRAWN),
    Space("logprobs", logprobs, _LOGITS, _wide_logits, False, _DRAWN),
    Space(
        "gemv",
        gemv,
        _WEIGHT_ROWS,
        _wide_weights,
        same_bits=False,
        loads=_by_weight,
        shared_by=("norm_linear", "norm_linear_silu_mul", "linear_add"),
        calls=FusedCalls,
    ),
    Space(
        "merge_linear_add",
        merge_linear_add,
        _SPLITS,
        _wide_splits,
        same_bits=False,
        loads=_by_sequences,
        calls=FusedCalls,
    ),
)

SPACES: Mapping[str, tuple[Space, ...]] = {
    op: tuple(space for space in _SPACES if space.op == op)
    for op in dict.fromkeys(space.op for space in _SPACES)
}
"""Op -> its launch tables, in the order to tune them in."""
