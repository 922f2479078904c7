"""Fused ops made of the separate ones: what they mean, and a count of what was called."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from qwell.kernels.fused_ops import FusedOps, Splits
from qwell.kernels.ops import Extent, Ops


class ComposedOps:
    """The attention of a sequence comes as its only split, with a sum of weights of 1."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self.calls: Counter[str] = Counter()

    def fused(self) -> FusedOps:
        return FusedOps(
            norm_linear=self._norm_linear,
            rope_attention=self._rope_attention,
            merge_linear_add=self._merge_linear_add,
            norm_linear_silu_mul=self._norm_linear_silu_mul,
            linear_add=self._linear_add,
        )

    def _norm_linear(
        self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        self.calls["norm_linear"] += 1
        return self._ops.linear(self._ops.rms_norm(x, norm, eps)[0], weight, bias)

    def _rope_attention(
        self,
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        k_cache: Tensor,
        v_cache: Tensor,
        slot_mapping: Tensor,
        block_table: Tensor,
        seq_lens: Tensor,
        max_seq_len: int,
        scale: float,
        window: int | None = None,
    ) -> Splits:
        self.calls["rope_attention"] += 1
        q = self._ops.rope(
            qkv, positions, cos_sin, q_norm, k_norm, eps, k_cache, v_cache, slot_mapping
        )
        count = len(seq_lens)
        starts = torch.arange(count + 1, dtype=torch.int32)
        extent = Extent(num_decodes=count, max_query_len=1, max_seq_len=max_seq_len)
        mixed = self._ops.attention(
            q, k_cache, v_cache, block_table, starts, seq_lens, extent, scale, window
        )
        values = mixed.view(count, 1, *q.shape[1:])
        stats = torch.stack((torch.zeros(values.shape[:3]), torch.ones(values.shape[:3])), dim=-1)
        return Splits(values, stats, seq_lens, window)

    def _merge_linear_add(self, splits: Splits, weight: Tensor, residual: Tensor) -> Tensor:
        self.calls["merge_linear_add"] += 1
        return residual + self._ops.linear(splits.values[:, 0].flatten(1), weight)

    def _norm_linear_silu_mul(self, x: Tensor, norm: Tensor, eps: float, gate_up: Tensor) -> Tensor:
        self.calls["norm_linear_silu_mul"] += 1
        return self._ops.silu_mul(self._ops.linear(self._ops.rms_norm(x, norm, eps)[0], gate_up))

    def _linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        self.calls["linear_add"] += 1
        return residual + self._ops.linear(x, weight)
