"""Self-attention of a decoder layer: fused q/k/v projection, rotation, paged attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qwell.kernels.cache import Cache
from qwell.kernels.ops import Ops
from qwell.kernels.weights import Weight
from qwell.runtime.batch import Batch


@dataclass(frozen=True)
class Attention:
    """Weights of one layer: qkv [(Hq + 2 Hkv) D, d], o [d, Hq D], q_norm and k_norm [D]."""

    qkv: Weight
    qkv_bias: Tensor | None
    o: Weight
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    scale: float
    window: int | None

    def __call__(
        self, ops: Ops, x: Tensor, batch: Batch, cos_sin: Tensor, k_cache: Cache, v_cache: Cache
    ) -> Tensor:
        """x [T, d] -> [T, d]; the new keys and values are in the cache afterwards."""
        q = ops.rope(
            ops.linear(x, self.qkv, self.qkv_bias),
            batch.positions,
            cos_sin,
            self.q_norm,
            self.k_norm,
            self.eps,
            k_cache,
            v_cache,
            batch.slot_mapping,
        )
        mixed = ops.attention(
            q,
            k_cache,
            v_cache,
            batch.block_table,
            batch.cu_seqlens_q,
            batch.seq_lens,
            batch.extent,
            self.scale,
            self.window,
        )
        return ops.linear(mixed, self.o)
