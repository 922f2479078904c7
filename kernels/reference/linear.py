"""linear: x W^T + b for dense and quantised weights."""

import torch.nn.functional as F
from torch import Tensor

from qwell.kernels.weights import Weight


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N] -> [T, N].

    Quantised weights mean their exact values: products, sum and bias in fp32, one rounding.
    """
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    wide_bias = None if bias is None else bias.float()
    return F.linear(x.float(), weight.dequantize(), wide_bias).to(x.dtype)
