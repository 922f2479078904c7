"""The paged KV cache: the tensors that blocks are rows of (block_pool.py says whose they are)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwell.kernels.ops import Ops
from qwell.kernels.registry import wants_transposed_keys
from qwell.runtime.checkpoint.config import ModelConfig

BLOCK_SIZE = 16


@dataclass(frozen=True)
class KVCache:
    """Per layer k and v [num_blocks, Hkv, BLOCK_SIZE, D] in the cache dtype."""

    k: list[Tensor]
    v: list[Tensor]


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Cache bytes of one token over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def allocate(
    config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device, ops: Ops
) -> KVCache:
    """Cache tensors for `num_blocks` blocks, uninitialised: attention reads written slots only.

    On CPUs the memory becomes resident as blocks are first used. k is laid out as
    kernels/native/paged.py says where `ops` want it so.
    """
    heads, head_dim = config.num_kv_heads, config.head_dim

    def layers(*block: int) -> list[Tensor]:
        shape = (num_blocks, heads, *block)
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    if wants_transposed_keys(ops):
        k = [memory.mT for memory in layers(head_dim, BLOCK_SIZE)]
    else:
        k = layers(BLOCK_SIZE, head_dim)
    return KVCache(k=k, v=layers(BLOCK_SIZE, head_dim))
