"""linear by the GPU vendor's BLAS, which picks kernels, and so bits, by the number of tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear as dense_linear

from qwell.kernels.triton.linear import linear as triton_linear
from qwell.kernels.weights import Weight


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N] -> [T, N].

    Packed formats, which BLAS does not know, go to Triton. Raises KernelError for those as
    Triton's does.
    """
    if isinstance(weight, Tensor):
        return dense_linear(x, weight, bias)
    return triton_linear(x, weight, bias)
