"""A decoder layer of the dense families: x += attention(norm(x)); x += mlp(norm(x))."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qwell.kernels.cache import Cache
from qwell.kernels.fused_ops import FusedOps
from qwell.kernels.ops import Ops
from qwell.runtime.batch import Batch
from qwell.runtime.layers.attention import Attention
from qwell.runtime.layers.mlp import Mlp


@dataclass(frozen=True)
class DecoderLayer:
    """input_norm and post_norm [d] are the RMS weights before attention and MLP."""

    input_norm: Tensor
    attention: Attention
    post_norm: Tensor
    mlp: Mlp
    eps: float

    def __call__(
        self,
        ops: Ops,
        x: Tensor,
        residual: Tensor | None,
        batch: Batch,
        cos_sin: Tensor,
        k_cache: Cache,
        v_cache: Cache,
    ) -> tuple[Tensor, Tensor]:
        """x [T, d] and the residual it is still to be added to -> the same after this layer."""
        x, residual = ops.rms_norm(x, self.input_norm, self.eps, residual)
        x = self.attention(ops, x, batch, cos_sin, k_cache, v_cache)
        x, residual = ops.rms_norm(x, self.post_norm, self.eps, residual)
        return self.mlp(ops, x), residual

    def fused(
        self,
        ops: FusedOps,
        x: Tensor,
        batch: Batch,
        cos_sin: Tensor,
        k_cache: Cache,
        v_cache: Cache,
    ) -> Tensor:
        """x [T, d] -> x after this layer, for a batch of a few decodes."""
        attention = self.attention
        qkv = ops.norm_linear(x, self.input_norm, self.eps, attention.qkv, attention.qkv_bias)
        splits = ops.rope_attention(
            qkv,
            batch.positions,
            cos_sin,
            attention.q_norm,
            attention.k_norm,
            attention.eps,
            k_cache,
            v_cache,
            batch.slot_mapping,
            batch.block_table,
            batch.seq_lens,
            batch.extent.max_seq_len,
            attention.scale,
            attention.window,
        )
        x = ops.merge_linear_add(splits, attention.o, x)
        hidden = ops.norm_linear_silu_mul(x, self.post_norm, self.eps, self.mlp.gate_up)
        return ops.linear_add(hidden, self.mlp.down, x)
