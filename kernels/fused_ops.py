"""Fused ops: a decode layer of a dense decoder in five launches, for steps of a few tokens.

At batch 1 a small model is bound by the number of launches. Each fused op computes what the ops
of kernels/ops.py that its docstring names compute one after the other, within rounding: it may
keep in fp32 what they round to the model dtype, and sum in another order. So it serves where
equal bits in every batch are not asked for. Letters as in kernels/ops.py; weights are dense.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from torch import Tensor

from qwell.kernels.cache import Cache
from qwell.kernels.weights import Weight

MAX_FUSED_TOKENS = 4
"""Most tokens of a step that fused ops take: beyond, programs would redo too much of the work."""


@dataclass(frozen=True)
class Splits:
    """Attention before its merge: what every split of the keys of a sequence came to.

    Attributes:
        values: fp32 [S, splits, Hq, D], sums of weighted values.
        stats: fp32 [S, splits, Hq, 2], greatest score (times log2 e) and sum of weights.
        seq_lens: int32 [S]; tells which splits a sequence has. The others are unwritten.
        window: as in attention; splits before it are unwritten too.
    """

    values: Tensor
    stats: Tensor
    seq_lens: Tensor
    window: int | None


class NormLinear(Protocol):
    def __call__(
        self, x: Tensor, norm: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
    ) -> Tensor:
        """linear(rms_norm(x, norm, eps), weight, bias): x [T, K], weight [N, K] -> [T, N]."""


class RopeAttention(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        k_cache: Cache,
        v_cache: Cache,
        slot_mapping: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        scale: float,
        window: int | None = None,
    ) -> Splits:
        """rope, then attention up to its merge, for sequences with one query each (T = S).

        Token s is the last of the seq_lens[s] tokens of sequence s. Keys and values are in the
        cache afterwards.
        """


class MergeLinearAdd(Protocol):
    def __call__(self, splits: Splits, weight: Weight, residual: Tensor) -> Tensor:
        """residual + linear(merged splits, weight): weight [N, Hq D], residual [S, N] -> [S, N].

        A sequence of length 0 has no splits and adds nothing.
        """


class NormLinearSiluMul(Protocol):
    def __call__(self, x: Tensor, norm: Tensor, eps: float, gate_up: Weight) -> Tensor:
        """silu_mul(linear(rms_norm(x, norm, eps), gate_up)): gate_up [2 I, K] -> [T, I]."""


class LinearAdd(Protocol):
    def __call__(self, x: Tensor, weight: Weight, residual: Tensor) -> Tensor:
        """residual + linear(x, weight): x [T, K], weight [N, K], residual [T, N] -> [T, N]."""


@dataclass(frozen=True)
class FusedOps:
    """One implementation of every fused op; the ones there are take weights that are tensors."""

    norm_linear: NormLinear
    rope_attention: RopeAttention
    merge_linear_add: MergeLinearAdd
    norm_linear_silu_mul: NormLinearSiluMul
    linear_add: LinearAdd


FUSED_OP_NAMES = tuple(field.name for field in fields(FusedOps))

REPLACED_OPS = frozenset({"rms_norm", "linear", "rope", "attention", "silu_mul"})
"""Ops of kernels/ops.py that do not run where fused ones do."""
