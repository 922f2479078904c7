"""The paged cache as the native ops take it.

v_cache is contiguous. k_cache [num_blocks, Hkv, BLOCK_SIZE, D] is a view of contiguous memory
[num_blocks, Hkv, D, BLOCK_SIZE]: a line there holds one feature of a block's tokens, so that their
scores are computed side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels.checks import check_cpu
from qwell.kernels.errors import KernelError
from qwell.kernels.native.runner import DTYPES

BLOCK_SIZE = 16
"""Tokens of a block: kBlockTokens of attention.h."""


def check_caches(op: str, k_cache: Tensor, v_cache: Tensor) -> tuple[int, int]:
    """Check the layout of a paged cache and return (Hkv, D). Raises KernelError."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.dim() != 4 or cache.shape[2] != BLOCK_SIZE:
            raise KernelError(
                f"{op}: {name} must have shape [num_blocks, Hkv, {BLOCK_SIZE}, D], "
                f"got {tuple(cache.shape)}"
            )
        check_cpu(op, name, cache)
        if cache.dtype not in DTYPES:
            raise KernelError(f"{op}: {name} must be one of {tuple(DTYPES)}, got {cache.dtype}")
    if v_cache.shape != k_cache.shape or v_cache.dtype != k_cache.dtype:
        raise KernelError(
            f"{op}: v_cache must be like k_cache, {k_cache.dtype} {tuple(k_cache.shape)}, "
            f"got {v_cache.dtype} {tuple(v_cache.shape)}"
        )
    if not v_cache.is_contiguous():
        raise KernelError(f"{op}: v_cache must be contiguous, got strides {v_cache.stride()}")
    if not k_cache.mT.is_contiguous():
        raise KernelError(
            f"{op}: k_cache must be a transposed view of contiguous [num_blocks, Hkv, D, "
            f"{BLOCK_SIZE}], got strides {k_cache.stride()}"
        )
    _, num_kv_heads, _, head_dim = k_cache.shape
    return num_kv_heads, head_dim


def check_indices(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that is not contiguous int32 of `shape` on the CPU. Raises KernelError."""
    check_cpu(op, name, tensor)
    if tensor.dtype != torch.int32:
        raise KernelError(f"{op}: {name} must be torch.int32, got {tensor.dtype}")
    if tensor.shape != shape:
        raise KernelError(f"{op}: {name} must have shape {shape}, got {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise KernelError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")


def check_activations(op: str, name: str, tensor: Tensor, dims: int) -> None:
    """Refuse activations that are not contiguous float32 on the CPU. Raises KernelError."""
    check_cpu(op, name, tensor)
    if tensor.dtype != torch.float32 or tensor.dim() != dims:
        raise KernelError(
            f"{op}: {name} must be torch.float32 of {dims} dimensions, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if not tensor.is_contiguous():
        raise KernelError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")
