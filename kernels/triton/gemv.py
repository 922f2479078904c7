"""What the fused linear ops demand of their tokens."""

from __future__ import annotations

from torch import Tensor

from qwell.kernels.checks import MODEL_DTYPES, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.fused_ops import MAX_FUSED_TOKENS


def check_tokens(op: str, name: str, x: Tensor) -> tuple[int, int]:
    """Check that x is [T, K] with few tokens and return (T, K). Raises KernelError."""
    if x.dim() != 2 or x.shape[1] == 0 or len(x) > MAX_FUSED_TOKENS:
        raise KernelError(
            f"{op}: {name} must have shape [T <= {MAX_FUSED_TOKENS}, K >= 1], got {tuple(x.shape)}"
        )
    if x.dtype not in MODEL_DTYPES:
        raise KernelError(f"{op}: {name} must be one of {MODEL_DTYPES}, got {x.dtype}")
    tokens, k = x.shape
    check_tensor(op, name, x, x, (tokens, k))
    return tokens, k


def check_weight(op: str, name: str, weight: Tensor, x: Tensor, k: int) -> int:
    """Check that a weight is [N, k] and goes with x, and return N. Raises KernelError."""
    if weight.dim() != 2:
        raise KernelError(f"{op}: {name} must have shape [N, {k}], got {tuple(weight.shape)}")
    n = len(weight)
    check_tensor(op, name, weight, x, (n, k))
    return n
