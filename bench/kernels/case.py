"""A call of an op that the kernel reports look at, and the meta tensors that it is made with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwell.runtime.kv_cache import BLOCK_SIZE


@dataclass(frozen=True)
class Case:
    """A call of an op whose launches are looked at.

    Attributes:
        run: calls the op on meta tensors.
        bytes_moved: between memory and chip, if each input and output goes once.
        flops: multiplications and additions, both counted.
        factors: type of what is multiplied: bf16, fp32, int8 or fp8.
        tensor_kernels: kernels that must use matrix units.
        wide_kernels: kernels that must load 128 bits at a time,
        least_wide_share: this part of the bytes that they load.
    """

    name: str
    run: Callable[[], object]
    bytes_moved: int
    flops: int = 0
    factors: str = "bf16"
    tensor_kernels: tuple[str, ...] = ()
    wide_kernels: tuple[str, ...] = ()
    least_wide_share: float = 0.9


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    """Indices without memory."""
    return meta(*shape, dtype=torch.int32)


def cache(tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Key and value caches for so many tokens, without memory."""
    shape = (-(-tokens // BLOCK_SIZE), heads, BLOCK_SIZE, head_dim)
    return meta(*shape, dtype=dtype), meta(*shape, dtype=dtype)
