"""The paged KV cache: the tensors that blocks are rows of (block_pool.py says whose they are)."""

from __future__ import annotations

import math
import mmap
import sys
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from qwell.kernels.cache import SCALE_BYTES, Cache, Int8Cache
from qwell.kernels.ops import Ops
from qwell.kernels.registry import wants_transposed_keys
from qwell.runtime.checkpoint.config import ModelConfig

BLOCK_SIZE = 16


@dataclass(frozen=True)
class KVCache:
    """Per layer k and v [num_blocks, Hkv, BLOCK_SIZE, D] in the cache dtype."""

    k: list[Cache]
    v: list[Cache]


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Cache bytes of one token over all layers."""
    vector = config.head_dim * dtype.itemsize + (SCALE_BYTES if dtype == torch.int8 else 0)
    return 2 * config.num_layers * config.num_kv_heads * vector


def allocate(
    config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device, ops: Ops
) -> KVCache:
    """Cache tensors for `num_blocks` blocks, uninitialised: attention reads written slots only.

    On CPUs the memory becomes resident as blocks are first used; OSError where the system does not
    promise as much. k is laid out as
    kernels/native/paged.py says where `ops` want it so. A cache in int8 has an Int8Cache a layer.
    """
    heads, head_dim = config.num_kv_heads, config.head_dim

    def memory(*block: int, dtype: torch.dtype = dtype) -> Tensor:
        return _memory((num_blocks, heads, *block), dtype, device)

    def layer(elements: Tensor) -> Cache:
        if dtype != torch.int8:
            return elements
        return Int8Cache(elements, scales=memory(BLOCK_SIZE, dtype=torch.float32))

    def keys() -> Tensor:
        if wants_transposed_keys(ops):
            return memory(head_dim, BLOCK_SIZE).mT
        return memory(BLOCK_SIZE, head_dim)

    layers = range(config.num_layers)
    return KVCache(
        k=[layer(keys()) for _ in layers],
        v=[layer(memory(BLOCK_SIZE, head_dim)) for _ in layers],
    )


def _memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, on Linux's CPUs in huge pages where the kernel has them.

    Attention jumps from block to block: with small pages a tenth of its time goes to finding them.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
