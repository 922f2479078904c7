"""attention: causal grouped-query attention over the paged cache, prefill and decode alike."""

import torch
from torch import Tensor

from qwell.kernels.cache import Cache, Int8Cache
from qwell.kernels.ops import Extent


def attention(
    q: Tensor,
    k_cache: Cache,
    v_cache: Cache,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    extent: Extent,  # noqa: ARG001  (sizes launches; here the tensors are asked)
    scale: float,
    window: int | None = None,
) -> Tensor:
    """softmax(scale q k^T) v per sequence: q [T, Hq, D] -> [T, Hq * D]."""
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    out = torch.empty_like(q)
    starts, lengths = cu_seqlens_q.tolist(), seq_lens.tolist()
    for s, length in enumerate(lengths):
        rows = slice(starts[s], starts[s + 1])
        if length == 0:
            out[rows] = 0
            continue
        blocks = block_table[s, : -(-length // block_size)]
        k, v = (
            _read(cache, blocks).transpose(0, 1).reshape(num_kv_heads, -1, head_dim)[:, :length]
            for cache in (k_cache, v_cache)
        )
        out[rows] = _one_sequence(q[rows].float(), k, v, scale, window).to(q.dtype)
    return out.flatten(1)


def _read(cache: Cache, blocks: Tensor) -> Tensor:
    """Blocks [n, Hkv, block_size, D] of the cache in fp32."""
    if isinstance(cache, Int8Cache):
        return cache.values[blocks].float() * cache.scales[blocks].unsqueeze(-1)
    return cache[blocks].float()


def _one_sequence(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """q [n, Hq, D] at the last n positions of k, v [Hkv, L, D] -> [n, Hq, D], all fp32."""
    num_queries, num_heads, head_dim = q.shape
    num_kv_heads, length, _ = k.shape
    # Query heads of one key/value head become rows of one matrix: K and V are read once a group.
    grouped = q.view(num_queries, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    scores = (grouped * scale) @ k.unsqueeze(1).transpose(-1, -2)
    position = torch.arange(length - num_queries, length, device=q.device).unsqueeze(1)
    key = torch.arange(length, device=q.device)
    hidden = key > position
    if window is not None:
        hidden |= key <= position - window
    probabilities = scores.masked_fill_(hidden, -torch.inf).softmax(dim=-1)
    mixed = probabilities @ v.unsqueeze(1)
    return mixed.permute(2, 0, 1, 3).reshape(num_queries, num_heads, head_dim)
