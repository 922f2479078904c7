"""linear: x W^T + b for dense weights."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N] -> [T, N]."""
    return F.linear(x, weight, bias)
