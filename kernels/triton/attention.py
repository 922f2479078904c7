"""attention for GPUs: decode for the leading sequences with one query, prefill for the others."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels.checks import MODEL_DTYPES, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.ops import Extent
from qwell.kernels.triton.attention_decode import attention_decode
from qwell.kernels.triton.attention_prefill import attention_prefill
from qwell.kernels.triton.configs import attention_decode as decode_config
from qwell.kernels.triton.configs import attention_prefill as prefill_config
from qwell.kernels.triton.launch import arch_of


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    extent: Extent,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """softmax(scale q k^T) v per sequence: q [T, Hq, D] -> [T, Hq * D].

    A row's bits depend on neither the batch nor the chunks that its sequence comes in. Never
    waits for the device. Raises KernelError for tensors of the wrong kind, odd head sizes or
    ones outside 16..256, and a scale or window that is not positive.
    """
    _check(q, k_cache, v_cache, block_table, cu_seqlens_q, seq_lens, extent, scale, window)
    num_tokens, num_heads, head_dim = q.shape
    out = torch.empty((num_tokens, num_heads * head_dim), dtype=q.dtype, device=q.device)
    arch = arch_of(q.device)
    decode = decode_config.settings(arch, head_dim, q.element_size())
    if extent.num_decodes > 0:
        attention_decode(
            q,
            k_cache,
            v_cache,
            block_table,
            seq_lens,
            out,
            extent.num_decodes,
            extent.max_seq_len,
            scale,
            window,
            decode,
        )
    if extent.num_decodes < seq_lens.shape[0] and num_tokens > 0:
        attention_prefill(
            q,
            k_cache,
            v_cache,
            block_table,
            cu_seqlens_q,
            seq_lens,
            out,
            extent,
            scale,
            window,
            prefill_config.settings(arch, head_dim, q.element_size()),
            decode.block_n,
        )
    return out


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    extent: Extent,
    scale: float,
    window: int | None,
) -> None:
    op = "attention"
    if q.dim() != 3 or k_cache.dim() != 4:
        raise KernelError(
            f"{op}: q must have shape [T, Hq, D] and k_cache [blocks, Hkv, block size, D], got "
            f"{tuple(q.shape)} and {tuple(k_cache.shape)}"
        )
    if q.dtype not in MODEL_DTYPES:
        raise KernelError(f"{op}: q must be one of {MODEL_DTYPES}, got {q.dtype}")
    num_tokens, num_heads, head_dim = q.shape
    num_blocks, num_kv_heads, block_size, _ = k_cache.shape
    if head_dim % 2 != 0 or not 16 <= head_dim <= 256:
        raise KernelError(f"{op}: q must have an even head size in 16..256, got {head_dim}")
    if num_heads % num_kv_heads != 0:
        raise KernelError(f"{op}: {num_heads} heads of q cannot share {num_kv_heads} of k_cache")
    if block_size & (block_size - 1) != 0:
        raise KernelError(f"{op}: k_cache must have blocks of a power of two, got {block_size}")
    check_tensor(op, "q", q, q, (num_tokens, num_heads, head_dim))
    cache_shape = (num_blocks, num_kv_heads, block_size, head_dim)
    check_tensor(op, "k_cache", k_cache, q, cache_shape)
    check_tensor(op, "v_cache", v_cache, q, cache_shape)
    if block_table.dim() != 2 or block_table.dtype != torch.int32:
        raise KernelError(
            f"{op}: block_table must be torch.int32 [S, blocks], got {block_table.dtype} "
            f"{tuple(block_table.shape)}"
        )
    num_sequences = block_table.shape[0]
    check_tensor(op, "block_table", block_table, block_table, tuple(block_table.shape))
    check_tensor(op, "cu_seqlens_q", cu_seqlens_q, block_table, (num_sequences + 1,))
    check_tensor(op, "seq_lens", seq_lens, block_table, (num_sequences,))
    if block_table.device != q.device:
        raise KernelError(f"{op}: block_table must be on {q.device}, got {block_table.device}")
    if not 0 <= extent.num_decodes <= num_sequences:
        raise KernelError(
            f"{op}: {extent.num_decodes} of {num_sequences} sequences cannot be decodes"
        )
    if not scale > 0:
        raise KernelError(f"{op}: scale must be positive, got {scale}")
    if window is not None and window < 1:
        raise KernelError(f"{op}: window must be positive or None, got {window}")
