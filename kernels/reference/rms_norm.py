"""rms_norm: root mean square normalisation (arXiv 1910.07467), with optional residual add."""

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """s = x + residual, y = s / rms(s) * weight; x, residual [..., N] -> (y, s)."""
    summed = x if residual is None else x + residual
    wide = summed.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight, summed
