"""What the fused linear ops mean: the reference ops that each replaces, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qwell.kernels.fused_ops import Splits
from qwell.kernels.reference.linear import linear
from qwell.kernels.reference.rms_norm import rms_norm
from qwell.kernels.reference.silu_mul import silu_mul
from qwell.kernels.triton.configs.attention_decode import SPLIT
from qwell.kernels.weights import Weight


def _norm_linear(
    x: Tensor, norm: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> Tensor:
    return linear(rms_norm(x, norm, eps)[0], weight, bias)


def _merge_linear_add(splits: Splits, weight: Weight, residual: Tensor) -> Tensor:
    """Splits of SPLIT keys, of which the last ones that a sequence has may be fewer."""
    lengths, window = splits.seq_lens[:, None], splits.window
    place = torch.arange(splits.values.shape[1], device=lengths.device)[None]
    first = 0 if window is None else (lengths - window).clamp(min=0) // SPLIT
    has = ((place >= first) & (place * SPLIT < lengths))[:, :, None]
    top = splits.stats[..., 0].masked_fill(~has, -torch.inf)
    # 0 for what no split is there for: the difference of infinities is none.
    base = top.amax(dim=1, keepdim=True).nan_to_num(neginf=0.0)
    share = torch.exp2(top - base)
    total = (share * splits.stats[..., 1].masked_fill(~has, 0.0)).sum(dim=1)
    values = splits.values.masked_fill(~has[..., None], 0.0)
    merged = (share[..., None] * values).sum(dim=1) / total.clamp(min=1e-30)[..., None]
    return residual + linear(merged.flatten(1).to(residual.dtype), weight)


def _norm_linear_silu_mul(x: Tensor, norm: Tensor, eps: float, gate_up: Weight) -> Tensor:
    return silu_mul(linear(rms_norm(x, norm, eps)[0], gate_up))


def _linear_add(x: Tensor, weight: Weight, residual: Tensor) -> Tensor:
    return residual + linear(x, weight)


FUSED_REFERENCE: Mapping[str, Callable[..., Tensor]] = {
    "norm_linear": _norm_linear,
    "merge_linear_add": _merge_linear_add,
    "norm_linear_silu_mul": _norm_linear_silu_mul,
    "linear_add": _linear_add,
}
"""By op; rope_attention, whose result depends on how it splits keys, is not among them."""
