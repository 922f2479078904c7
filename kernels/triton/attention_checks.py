"""What attention over a paged cache demands of its arguments, whatever form its queries have."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels.checks import check_tensor
from qwell.kernels.errors import KernelError


def check_paged(
    op: str,
    num_heads: int,
    head_dim: int,
    k_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
) -> None:
    """Check that num_heads query heads of head_dim elements can attend to these sequences.

    Raises KernelError.
    """
    _, num_kv_heads, block_size, _ = k_cache.shape
    if head_dim % 2 != 0 or not 16 <= head_dim <= 256:
        raise KernelError(f"{op}: q must have an even head size in 16..256, got {head_dim}")
    if num_heads % num_kv_heads != 0:
        raise KernelError(f"{op}: {num_heads} heads of q cannot share {num_kv_heads} of k_cache")
    if block_size & (block_size - 1) != 0:
        raise KernelError(f"{op}: k_cache must have blocks of a power of two, got {block_size}")
    if block_table.dim() != 2 or block_table.dtype != torch.int32:
        raise KernelError(
            f"{op}: block_table must be torch.int32 [S, blocks], got {block_table.dtype} "
            f"{tuple(block_table.shape)}"
        )
    if block_table.device != k_cache.device:
        raise KernelError(
            f"{op}: block_table must be on {k_cache.device}, got {block_table.device}"
        )
    check_tensor(op, "block_table", block_table, block_table, tuple(block_table.shape))
    check_tensor(op, "seq_lens", seq_lens, block_table, (block_table.shape[0],))
    if not scale > 0:
        raise KernelError(f"{op}: scale must be positive, got {scale}")
    if window is not None and window < 1:
        raise KernelError(f"{op}: window must be positive or None, got {window}")
