"""rope and attention up to its merge in one launch, for sequences with one query each.

A program norms and rotates its query heads itself. The new key and value of a head belong to the
program of the last split: it writes them to the cache for later steps, and begins its softmax
with them from registers, so that no program reads what this launch writes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.fused_ops import MAX_FUSED_TOKENS, Splits
from qwell.kernels.triton.attention_checks import check_paged
from qwell.kernels.triton.attention_decode import programs_per_head
from qwell.kernels.triton.attention_split import attend_split, store_split
from qwell.kernels.triton.configs.attention_decode import SPLIT, settings
from qwell.kernels.triton.launch import arch_of, cdiv, next_power_of_2
from qwell.kernels.triton.rope import cache_row, check_rope, normed


@triton.jit
def _load_turned(
    x_ptr,
    norm_ptr,
    angle_ptr,
    o_row,
    m_row,
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Heads at elements o_row [M, 1] of x, normed and rotated by the angles of a position.

    Every element is computed from its own pair, which is loaded twice, because products take
    whole heads. Otherwise as rope_kernel.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    # As wide as the heads: lanes then load what they need of all tensors 128 bits at a time.
    o_d = tl.arange(0, BLOCK_D)[None, :] + tl.zeros_like(o_row)
    o_other = (o_d + HALF) % HEAD_DIM
    mask = m_row & (o_d < HEAD_DIM)
    b_raw = tl.load(x_ptr + o_row + o_d, mask=mask, other=0.0)
    b_raw_other = tl.load(x_ptr + o_row + o_other, mask=mask, other=0.0)
    b_cos = tl.load(angle_ptr + o_d % HALF, mask=mask, other=0.0)
    b_sin = tl.load(angle_ptr + HALF + o_d % HALF, mask=mask, other=0.0)

    dtype = x_ptr.dtype.element_ty
    b_own, b_other = b_raw.to(tl.float32), b_raw_other.to(tl.float32)
    if HAS_NORM:
        b_norm = tl.load(norm_ptr + o_d, mask=mask, other=0.0).to(tl.float32)
        b_norm_other = tl.load(norm_ptr + o_other, mask=mask, other=0.0).to(tl.float32)
        # By pairs, which is how rope_kernel sums.
        b_squares = tl.where(o_d < HALF, b_own * b_own + b_other * b_other, 0.0)
        b_rstd = tl.rsqrt(tl.sum(b_squares, axis=1) / HEAD_DIM + eps)[:, None]
        b_own = normed(b_own, b_rstd, b_norm, dtype)
        b_other = normed(b_other, b_rstd, b_norm_other, dtype)
    return (b_own * b_cos + tl.where(o_d < HALF, -b_other, b_other) * b_sin).to(dtype)


@triton.jit(do_not_specialize=["num_splits", "table_stride"])
def rope_attention_kernel(
    qkv_ptr,
    positions_ptr,
    cos_sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    table_ptr,
    lens_ptr,
    part_ptr,
    part_stats_ptr,
    eps,
    num_splits,
    table_stride,
    scale_log2,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Splits program_id(0), + num_programs(0), ... of sequence and head program_id(2) and (1)."""
    i_kv_head, i_sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    end = tl.load(lens_ptr + i_sequence)
    first_key = tl.maximum(end - WINDOW, 0) if WINDOW > 0 else 0
    first_split = first_key // SPLIT + tl.program_id(0)
    end_split = tl.cdiv(end, SPLIT)
    # Most programs, where a captured graph is sized for the longest sequence possible.
    if first_split >= end_split:
        return

    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    o_row = tl.arange(0, BLOCK_M)
    m_row = o_row < GROUP
    o_head = i_kv_head * GROUP + o_row
    qkv_ptr += i_sequence * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    angle_ptr = cos_sin_ptr + tl.load(positions_ptr + i_sequence).to(tl.int64) * HEAD_DIM
    slot = tl.load(slots_ptr + i_sequence)
    b_q = _load_turned(
        qkv_ptr, q_norm_ptr, angle_ptr, o_head[:, None] * HEAD_DIM, m_row[:, None], eps,
        HEAD_DIM, BLOCK_D, HAS_NORM,
    )  # fmt: skip

    # Masked rather than branched around, so that its loads do not wait for those of the queries.
    # Masks are tiles, because the interpreter does not combine those of numbers with others.
    o_d = tl.arange(0, BLOCK_D)[None, :]
    o_one = tl.zeros((1, 1), tl.int32)
    m_owner = (end_split - 1 - first_split + o_one) % tl.num_programs(0) == 0
    o_k = (NUM_HEADS + i_kv_head + o_one) * HEAD_DIM
    b_k = _load_turned(
        qkv_ptr, k_norm_ptr, angle_ptr, o_k, m_owner, eps, HEAD_DIM, BLOCK_D, HAS_NORM
    )
    b_new_score = tl.sum(b_q.to(tl.float32) * b_k.to(tl.float32), axis=1) * scale_log2
    k_cache_ptr += i_kv_head * PAGE * HEAD_DIM
    v_cache_ptr += i_kv_head * PAGE * HEAD_DIM
    o_cache = cache_row(slot, 0, NUM_KV_HEADS, PAGE) * HEAD_DIM + o_d
    m_d = o_d < HEAD_DIM
    m_cached = m_owner & m_d & (slot + o_one >= 0)
    p_v = qkv_ptr + (NUM_HEADS + NUM_KV_HEADS + i_kv_head) * HEAD_DIM + o_d
    b_v = tl.load(p_v, mask=m_d, other=0.0)
    tl.store(k_cache_ptr + o_cache, b_k, mask=m_cached)
    tl.store(v_cache_ptr + o_cache, b_v, mask=m_cached)

    table_ptr += i_sequence * table_stride
    for i_split in range(first_split, end_split, tl.num_programs(0)):
        # A split begins with the new key. In all but the last that weighs exp2(-inf) = 0.
        b_max = tl.where(i_split == end_split - 1, b_new_score, float("-inf"))
        b_sum = tl.full((BLOCK_M,), 1.0, tl.float32)
        b_acc = tl.broadcast_to(b_v.to(tl.float32), (BLOCK_M, BLOCK_D))
        if WINDOW != 1:  # else the new key is the only one
            # A query one position before, its window shorter by one, sees all keys but the new.
            b_max, b_sum, b_acc = attend_split(
                b_q, b_max, b_sum, b_acc, k_cache_ptr, v_cache_ptr, table_ptr, i_split, end - 2,
                scale_log2, NUM_KV_HEADS, PAGE, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, SPLIT,
                WINDOW - 1 if WINDOW > 0 else 0,
            )  # fmt: skip
        store_split(
            part_ptr, part_stats_ptr, b_max, b_sum, b_acc,
            i_sequence * num_splits + i_split, o_head, m_row, NUM_HEADS, HEAD_DIM, BLOCK_D,
        )  # fmt: skip


def rope_attention(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    scale: float,
    window: int | None = None,
) -> Splits:
    """rope, then attention up to its merge: qkv [S, (Hq + 2 Hkv) D], a token a sequence -> Splits.

    A sequence of length 0 pads a captured graph: nothing is written for it, not even to its
    slot. Never waits for the device. Raises KernelError for what rope and attention refuse, and
    for more than MAX_FUSED_TOKENS tokens.
    """
    op = "rope_attention"
    num_heads = check_rope(
        op, qkv, positions, cos_sin, q_norm, k_norm, k_cache, v_cache, slot_mapping
    )
    num_sequences = qkv.shape[0]
    _, num_kv_heads, page, head_dim = k_cache.shape
    check_paged(op, num_heads, head_dim, k_cache, block_table, seq_lens, scale, window)
    if num_sequences > MAX_FUSED_TOKENS:
        raise KernelError(
            f"{op}: qkv must have at most {MAX_FUSED_TOKENS} tokens, got {num_sequences}"
        )
    check_tensor(op, "block_table", block_table, block_table, (num_sequences, block_table.shape[1]))

    group = num_heads // num_kv_heads
    num_splits = max(cdiv(max_seq_len, SPLIT), 1)
    shape = (num_sequences, num_splits, num_heads)
    values = torch.empty((*shape, head_dim), dtype=torch.float32, device=qkv.device)
    stats = torch.empty((*shape, 2), dtype=torch.float32, device=qkv.device)
    chosen = settings(arch_of(qkv.device), head_dim, qkv.element_size())
    if num_sequences > 0:
        num_programs = programs_per_head(num_splits, num_kv_heads * num_sequences)
        rope_attention_kernel[(num_programs, num_kv_heads, num_sequences)](
            qkv,
            positions,
            cos_sin,
            qkv if q_norm is None else q_norm,
            qkv if k_norm is None else k_norm,
            k_cache,
            v_cache,
            slot_mapping,
            block_table,
            seq_lens,
            values,
            stats,
            eps,
            num_splits,
            block_table.stride(0),
            scale * math.log2(math.e),
            NUM_KV_HEADS=num_kv_heads,
            GROUP=group,
            PAGE=page,
            HEAD_DIM=head_dim,
            BLOCK_D=max(next_power_of_2(head_dim), 16),
            BLOCK_M=max(next_power_of_2(group), 16),
            BLOCK_N=chosen.block_n,
            SPLIT=SPLIT,
            WINDOW=window or 0,
            HAS_NORM=q_norm is not None,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            enable_fp_fusion=True,
        )
    return Splits(values, stats, seq_lens, window)
