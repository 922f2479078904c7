"""What implementations demand of their tensors, with messages that name op and tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels.errors import KernelError

MODEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(op: str, name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that is not contiguous, of `shape`, and of dtype and device of `like`.

    Raises KernelError.
    """
    if tensor.shape != shape:
        raise KernelError(f"{op}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype:
        raise KernelError(f"{op}: {name} must be {like.dtype}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise KernelError(f"{op}: {name} must be on {like.device}, got {tensor.device}")
    if not tensor.is_contiguous():
        raise KernelError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")


def check_cpu(op: str, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not in this machine's memory. Raises KernelError."""
    if tensor.device.type != "cpu":
        raise KernelError(f"{op}: {name} must be on the CPU, got {tensor.device}")


def check_parameter(op: str, name: str, tensor: Tensor, dtype: torch.dtype, size: int) -> None:
    """Refuse what is not `size` numbers of `dtype`, contiguous in this machine's memory.

    Raises KernelError.
    """
    if tensor.dtype != dtype:
        raise KernelError(f"{op}: {name} must be {dtype}, got {tensor.dtype}")
    check_cpu(op, name, tensor)
    check_tensor(op, name, tensor, tensor, (size,))


def check_logits(op: str, logits: Tensor) -> tuple[int, int]:
    """Check that logits are contiguous float32 [S, V] and return (S, V). Raises KernelError."""
    if logits.dim() != 2 or logits.shape[1] == 0 or logits.dtype != torch.float32:
        raise KernelError(
            f"{op}: logits must be torch.float32 of shape [S, V >= 1], "
            f"got {logits.dtype} of {tuple(logits.shape)}"
        )
    rows, vocabulary = logits.shape
    check_tensor(op, "logits", logits, logits, (rows, vocabulary))
    return rows, vocabulary


def check_rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None) -> tuple[int, int]:
    """Check the arguments of rms_norm and return (T, N). Raises KernelError."""
    if x.dim() != 2 or x.shape[1] == 0:
        raise KernelError(f"rms_norm: x must have shape [T, N >= 1], got {tuple(x.shape)}")
    if x.dtype not in MODEL_DTYPES:
        raise KernelError(f"rms_norm: x must be one of {MODEL_DTYPES}, got {x.dtype}")
    rows, width = x.shape
    check_tensor("rms_norm", "x", x, x, (rows, width))
    check_tensor("rms_norm", "weight", weight, x, (width,))
    if residual is not None:
        check_tensor("rms_norm", "residual", residual, x, (rows, width))
    return rows, width
