"""rope: per-head norms, rotary position embedding, and the write into the paged cache."""

import torch
from torch import Tensor

from qwell.kernels.cache import Cache, Int8Cache, quantize_vectors
from qwell.kernels.reference.rms_norm import rms_norm


def rope(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_cache: Cache,
    v_cache: Cache,
    slot_mapping: Tensor,
) -> Tensor:
    """qkv [T, (Hq + 2 Hkv) D] -> rotated q [T, Hq, D]; k and v go to slot_mapping [T]."""
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if q_norm is not None:
        q, _ = rms_norm(q, q_norm, eps)
    if k_norm is not None:
        k, _ = rms_norm(k, k_norm, eps)

    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    kept = (slot_mapping >= 0).nonzero().squeeze(1)
    slots = slot_mapping[kept].long()
    block, offset = slots // block_size, slots % block_size
    _write(k_cache, block, offset, _rotate(k, cos, sin)[kept])
    _write(v_cache, block, offset, v[kept])
    return _rotate(q, cos, sin)


def _write(cache: Cache, block: Tensor, offset: Tensor, x: Tensor) -> None:
    """Put x [n, Hkv, D] into the places block, offset [n]."""
    if isinstance(cache, Int8Cache):
        cache.values[block, :, offset], cache.scales[block, :, offset] = quantize_vectors(x)
    else:
        cache[block, :, offset] = x.to(cache.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (j, j + D/2) of x [T, H, D] by the angles of cos, sin [T, 1, D/2]."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
