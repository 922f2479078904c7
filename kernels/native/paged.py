"""The paged cache as the native ops take it.

v_cache is contiguous. k_cache [num_blocks, Hkv, BLOCK_SIZE, D] is a view of contiguous memory
[num_blocks, Hkv, D, BLOCK_SIZE]: a line there holds one feature of a block's tokens, so that their
scores are computed side by side. Of an Int8Cache that holds for the values; scales are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.cache import Cache, Int8Cache
from qwell.kernels.checks import MODEL_DTYPES, check_cpu
from qwell.kernels.errors import KernelError

BLOCK_SIZE = 16
"""Tokens of a block: kBlockTokens of paged_cache.h."""

CACHE_DTYPES = {
    torch.float32: _native.CacheDType.float32,
    torch.bfloat16: _native.CacheDType.bfloat16,
    torch.float16: _native.CacheDType.float16,
    torch.int8: _native.CacheDType.int8,
}
"""Element types of the cache as the native code calls them."""


@dataclass(frozen=True)
class CacheLayout:
    """What native calls are told of a pair of caches; 0 is the address of scales that are not."""

    cache_dtype: _native.CacheDType
    k_cache: int
    v_cache: int
    k_scales: int
    v_scales: int
    num_kv_heads: int
    head_dim: int


def check_caches(op: str, k_cache: Cache, v_cache: Cache) -> CacheLayout:
    """Check that a paged cache is laid out as the native ops take it. Raises KernelError."""
    k, k_scales = _parts(op, "k_cache", k_cache)
    v, v_scales = _parts(op, "v_cache", v_cache)
    if v.shape != k.shape or v.dtype != k.dtype:
        raise KernelError(
            f"{op}: v_cache must be like k_cache, {k.dtype} {tuple(k.shape)}, "
            f"got {v.dtype} {tuple(v.shape)}"
        )
    if not v.is_contiguous():
        raise KernelError(f"{op}: v_cache must be contiguous, got strides {v.stride()}")
    if not k.mT.is_contiguous():
        raise KernelError(
            f"{op}: k_cache must be a transposed view of contiguous [num_blocks, Hkv, D, "
            f"{BLOCK_SIZE}], got strides {k.stride()}"
        )
    return CacheLayout(
        cache_dtype=CACHE_DTYPES[k.dtype],
        k_cache=k.data_ptr(),
        v_cache=v.data_ptr(),
        k_scales=0 if k_scales is None else k_scales.data_ptr(),
        v_scales=0 if v_scales is None else v_scales.data_ptr(),
        num_kv_heads=k.shape[1],
        head_dim=k.shape[3],
    )


def _parts(op: str, name: str, cache: Cache) -> tuple[Tensor, Tensor | None]:
    """The elements of a cache, and the scales of an Int8Cache."""
    elements, scales = (
        (cache.values, cache.scales) if isinstance(cache, Int8Cache) else (cache, None)
    )
    if elements.dim() != 4 or elements.shape[2] != BLOCK_SIZE:
        raise KernelError(
            f"{op}: {name} must have shape [num_blocks, Hkv, {BLOCK_SIZE}, D], "
            f"got {tuple(elements.shape)}"
        )
    check_cpu(op, name, elements)
    if scales is None:
        if elements.dtype not in MODEL_DTYPES:
            raise KernelError(
                f"{op}: {name} must be an Int8Cache or one of {MODEL_DTYPES}, got {elements.dtype}"
            )
        return elements, None
    if elements.dtype != torch.int8:
        raise KernelError(f"{op}: {name} must have torch.int8 values, got {elements.dtype}")
    check_cpu(op, f"scales of {name}", scales)
    if (
        scales.dtype != torch.float32
        or scales.shape != elements.shape[:3]
        or not scales.is_contiguous()
    ):
        raise KernelError(
            f"{op}: scales of {name} must be contiguous torch.float32 "
            f"{tuple(elements.shape[:3])}, got {scales.dtype} {tuple(scales.shape)}"
        )
    return elements, scales


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
