"""rope for GPUs: a program takes a few heads of a token, be they query, key or value heads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import MODEL_DTYPES, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.rope import settings
from qwell.kernels.triton.launch import arch_of, cdiv, next_power_of_2


@triton.jit
def _load_norm(p_q_norm, m_q, p_k_norm, m_k):
    """Norm weights of query and key heads. A choice of pointers would hide their alignment."""
    b_q_norm = tl.load(p_q_norm, mask=m_q, other=0.0)
    b_k_norm = tl.load(p_k_norm, mask=m_k, other=0.0)
    return tl.where(m_q, b_q_norm, b_k_norm).to(tl.float32)


@triton.jit
def normed(b_x, b_rstd, b_norm, dtype: tl.constexpr):
    """x times rstd times weight in fp32, having been rounded to the model dtype twice."""
    return ((b_x * b_rstd).to(dtype).to(tl.float32) * b_norm).to(dtype).to(tl.float32)


@triton.jit
def cache_row(slot, i_kv_head, NUM_KV_HEADS: tl.constexpr, PAGE: tl.constexpr):
    """Row of D elements of a cache that belongs to a head in a slot."""
    return slot.to(tl.int64) // PAGE * (NUM_KV_HEADS * PAGE) + i_kv_head * PAGE + slot % PAGE


@triton.jit
def rope_kernel(
    qkv_ptr,
    positions_ptr,
    cos_sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    slots_ptr,
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Heads program_id(1) * BLOCK_H on of token program_id(0), as pairs (j, j + D/2)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    i_token = tl.program_id(0).to(tl.int64)
    o_head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    o_kv_head = (o_head - NUM_HEADS) % NUM_KV_HEADS
    # As wide as the heads: lanes then load what they need of all tensors 128 bits at a time.
    o_d = tl.arange(0, BLOCK_D)[None, :] + tl.zeros_like(o_head)
    m_d = o_d < HALF
    m_q = m_d & (o_head < NUM_HEADS)
    m_k = m_d & (o_head >= NUM_HEADS) & (o_head < NUM_HEADS + NUM_KV_HEADS)
    m_v = m_d & (o_head >= NUM_HEADS + NUM_KV_HEADS) & (o_head < NUM_HEADS + 2 * NUM_KV_HEADS)

    p_x = qkv_ptr + i_token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM) + o_head * HEAD_DIM + o_d
    b_raw_low = tl.load(p_x, mask=m_q | m_k | m_v, other=0.0)
    b_raw_high = tl.load(p_x + HALF, mask=m_q | m_k | m_v, other=0.0)
    p_angle = cos_sin_ptr + tl.load(positions_ptr + i_token).to(tl.int64) * HEAD_DIM + o_d
    b_cos = tl.load(p_angle, mask=m_q | m_k, other=0.0)
    b_sin = tl.load(p_angle + HALF, mask=m_q | m_k, other=0.0)
    slot = tl.load(slots_ptr + i_token)

    dtype = q_ptr.dtype.element_ty
    b_low, b_high = b_raw_low.to(tl.float32), b_raw_high.to(tl.float32)
    if HAS_NORM:
        b_norm_low = _load_norm(q_norm_ptr + o_d, m_q, k_norm_ptr + o_d, m_k)
        b_norm_high = _load_norm(q_norm_ptr + HALF + o_d, m_q, k_norm_ptr + HALF + o_d, m_k)
        b_squares = tl.sum(b_low * b_low + b_high * b_high, axis=1)
        b_rstd = tl.rsqrt(b_squares / HEAD_DIM + eps)[:, None]
        b_low = normed(b_low, b_rstd, b_norm_low, dtype)
        b_high = normed(b_high, b_rstd, b_norm_high, dtype)
    b_turned_low = (b_low * b_cos - b_high * b_sin).to(dtype)
    b_turned_high = (b_high * b_cos + b_low * b_sin).to(dtype)

    p_q = q_ptr + (i_token * NUM_HEADS + o_head) * HEAD_DIM + o_d
    tl.store(p_q, b_turned_low, mask=m_q)
    tl.store(p_q + HALF, b_turned_high, mask=m_q)
    if slot >= 0:
        o_cache = cache_row(slot, o_kv_head, NUM_KV_HEADS, PAGE) * HEAD_DIM + o_d
        tl.store(k_cache_ptr + o_cache, b_turned_low, mask=m_k)
        tl.store(k_cache_ptr + o_cache + HALF, b_turned_high, mask=m_k)
        tl.store(v_cache_ptr + o_cache, b_raw_low, mask=m_v)
        tl.store(v_cache_ptr + o_cache + HALF, b_raw_high, mask=m_v)


def rope(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """qkv [T, (Hq + 2 Hkv) D] -> rotated q [T, Hq, D]; k and v go to slot_mapping [T].

    Tokens of slot -1, which pad a captured graph, are not cached. Raises KernelError for tensors
    of the wrong kind, an odd head size, or one norm without the other.
    """
    num_heads = check_rope(
        "rope", qkv, positions, cos_sin, q_norm, k_norm, k_cache, v_cache, slot_mapping
    )
    num_tokens = qkv.shape[0]
    _, num_kv_heads, page, head_dim = k_cache.shape
    q = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    block, num_warps = settings(arch_of(qkv.device))
    block_d = next_power_of_2(head_dim // 2)
    block_h = max(block // block_d, 1)
    if num_tokens > 0:
        rope_kernel[(num_tokens, cdiv(num_heads + 2 * num_kv_heads, block_h))](
            qkv,
            positions,
            cos_sin,
            qkv if q_norm is None else q_norm,
            qkv if k_norm is None else k_norm,
            slot_mapping,
            q,
            k_cache,
            v_cache,
            eps,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            PAGE=page,
            BLOCK_H=block_h,
            BLOCK_D=block_d,
            HAS_NORM=q_norm is not None,
            num_warps=num_warps,
            enable_fp_fusion=True,
        )
    return q


def check_rope(
    op: str,
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> int:
    """Check the arguments of rope, or of an op that includes it, and return Hq.

    Raises KernelError.
    """
    if qkv.dim() != 2 or k_cache.dim() != 4:
        raise KernelError(
            f"{op}: qkv must have shape [T, (Hq + 2 Hkv) D] and k_cache [blocks, Hkv, block size, "
            f"D], got {tuple(qkv.shape)} and {tuple(k_cache.shape)}"
        )
    if qkv.dtype not in MODEL_DTYPES:
        raise KernelError(f"{op}: qkv must be one of {MODEL_DTYPES}, got {qkv.dtype}")
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    num_tokens, width = qkv.shape
    num_heads = width // head_dim - 2 * num_kv_heads
    if head_dim % 2 != 0 or width % head_dim != 0 or num_heads < 1:
        raise KernelError(
            f"{op}: rows of qkv must hold an even head size {head_dim} more than "
            f"{2 * num_kv_heads} times, got {width} elements"
        )
    check_tensor(op, "qkv", qkv, qkv, (num_tokens, width))
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_tensor(op, name, cache, qkv, (num_blocks, num_kv_heads, block_size, head_dim))
    if (q_norm is None) != (k_norm is None):
        raise KernelError(f"{op}: q_norm and k_norm must both be given, or neither")
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            check_tensor(op, name, norm, qkv, (head_dim,))
    if positions.dtype != torch.int32 or positions.device != qkv.device:
        raise KernelError(
            f"{op}: positions must be torch.int32 on {qkv.device}, got {positions.dtype} on "
            f"{positions.device}"
        )
    check_tensor(op, "positions", positions, positions, (num_tokens,))
    check_tensor(op, "slot_mapping", slot_mapping, positions, (num_tokens,))
    if cos_sin.dtype != torch.float32 or cos_sin.device != qkv.device or cos_sin.dim() != 2:
        raise KernelError(
            f"{op}: cos_sin must be torch.float32 [P, D] on {qkv.device}, got {cos_sin.dtype} "
            f"{tuple(cos_sin.shape)} on {cos_sin.device}"
        )
    check_tensor(op, "cos_sin", cos_sin, cos_sin, (cos_sin.shape[0], head_dim))
    return num_heads
