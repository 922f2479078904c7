"""attention of sequences with one query each: splits of the keys side by side, then their merge.

A program holds the query heads of one key/value head, so that keys and values are read once, and
takes a split of the keys at a time (Flash-Decoding, pytorch.org/blog/flash-decoding). Splits have
a fixed size: what is summed in which order depends on a sequence's own length only.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.triton.attention_split import attend_split, store_split
from qwell.kernels.triton.attention_tile import merge, merge_weights, normalised
from qwell.kernels.triton.configs.attention_decode import SPLIT, Settings
from qwell.kernels.triton.launch import cdiv, next_power_of_2


@triton.jit(do_not_specialize=["num_splits", "table_stride"])
def attention_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    lens_ptr,
    out_ptr,
    part_ptr,
    part_stats_ptr,
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
    HAS_PARTS: tl.constexpr,
):
    """Splits program_id(0), + num_programs(0), ... of sequence and head program_id(2) and (1).

    Without HAS_PARTS there is one split, and it is the output; else a part [S, splits, Hq, D],
    with its maximum and sum in part_stats [S, splits, Hq, 2].
    """
    i_kv_head, i_sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    end = tl.load(lens_ptr + i_sequence)
    first_key = tl.maximum(end - WINDOW, 0) if WINDOW > 0 else 0
    first_split = first_key // SPLIT + tl.program_id(0)
    # Padding of captured graphs has no keys; its one split is empty, and its output 0.
    last_split = tl.maximum(tl.cdiv(end, SPLIT), 1)
    # Most programs, where a captured graph is sized for the longest sequence possible.
    if first_split >= last_split:
        return

    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    o_row = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_row = o_row < GROUP
    m_q = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
    o_head = i_kv_head * GROUP + o_row
    o_q = (i_sequence * NUM_HEADS + o_head)[:, None] * HEAD_DIM + o_d[None, :]
    b_q = tl.load(q_ptr + o_q, mask=m_q, other=0.0)

    k_ptr += i_kv_head * PAGE * HEAD_DIM
    v_ptr += i_kv_head * PAGE * HEAD_DIM
    table_ptr += i_sequence * table_stride
    for i_split in range(first_split, last_split, tl.num_programs(0)):
        b_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        b_sum = tl.zeros((BLOCK_M,), tl.float32)
        b_acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        b_max, b_sum, b_acc = attend_split(
            b_q, b_max, b_sum, b_acc, k_ptr, v_ptr, table_ptr, i_split, end - 1, scale_log2,
            NUM_KV_HEADS, PAGE, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, SPLIT, WINDOW,
        )  # fmt: skip
        if HAS_PARTS:
            store_split(
                part_ptr, part_stats_ptr, b_max, b_sum, b_acc,
                i_sequence * num_splits + i_split, o_head, m_row, NUM_HEADS, HEAD_DIM, BLOCK_D,
            )  # fmt: skip
        else:
            # As if merged with nothing, which leaves its bits alone.
            b_out = normalised(b_acc, b_sum[:, None])
            tl.store(out_ptr + o_q, b_out.to(out_ptr.dtype.element_ty), mask=m_q)


@triton.jit(do_not_specialize=["num_splits"])
def attention_merge_kernel(
    part_ptr,
    part_stats_ptr,
    lens_ptr,
    out_ptr,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Output of query head program_id(0) of sequence program_id(1) from its splits, in order."""
    i_head, i_sequence = tl.program_id(0), tl.program_id(1)
    end = tl.load(lens_ptr + i_sequence)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(end - WINDOW, 0) // SPLIT
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < HEAD_DIM
    b_max = float("-inf")
    b_sum = 0.0
    b_acc = tl.zeros((BLOCK_D,), tl.float32)
    for i_split in tl.range(first, tl.cdiv(end, SPLIT), loop_unroll_factor=4):
        o_part = (i_sequence.to(tl.int64) * num_splits + i_split) * NUM_HEADS + i_head
        b_split_acc = tl.load(part_ptr + o_part * HEAD_DIM + o_d, mask=m_d, other=0.0)
        b_split_max = tl.load(part_stats_ptr + o_part * 2)
        b_split_sum = tl.load(part_stats_ptr + o_part * 2 + 1)
        b_max, b_old, b_new = merge_weights(b_max, b_split_max)
        b_sum = merge(b_sum, b_split_sum, b_old, b_new)
        b_acc = merge(b_acc, b_split_acc, b_old, b_new)
    o_out = (i_sequence.to(tl.int64) * NUM_HEADS + i_head) * HEAD_DIM + o_d
    b_out = normalised(b_acc, b_sum)
    tl.store(out_ptr + o_out, b_out.to(out_ptr.dtype.element_ty), mask=m_d)


def programs_per_head(num_splits: int, num_heads: int) -> int:
    """Programs that share the splits of one of `num_heads` heads of all sequences.

    Enough to fill a GPU several times. More would mostly find nothing to do, as launches are
    sized for the longest sequence, in captured graphs even for the longest possible one.
    """
    return min(num_splits, max(16, -(-4096 // num_heads)))


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    count: int,
    max_seq_len: int,
    scale: float,
    window: int | None,
    settings: Settings,
) -> None:
    """Write rows 0..count of out [T, Hq * D]; row s is the one query of sequence s.

    The arguments are those of attention, checked. A sequence of length 0, which pads a captured
    graph, gets zeros.
    """
    _, num_kv_heads, page, head_dim = k_cache.shape
    num_heads = q.shape[1]
    group = num_heads // num_kv_heads
    block_d = max(next_power_of_2(head_dim), 16)
    num_splits = max(cdiv(max_seq_len, SPLIT), 1)
    has_parts = num_splits > 1
    part = part_stats = out
    if has_parts:
        shape = (count, num_splits, num_heads)
        part = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        part_stats = torch.empty((*shape, 2), dtype=torch.float32, device=q.device)
    num_programs = programs_per_head(num_splits, num_kv_heads * count)
    attention_decode_kernel[(num_programs, num_kv_heads, count)](
        q,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        out,
        part,
        part_stats,
        num_splits,
        block_table.stride(0),
        scale * math.log2(math.e),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        PAGE=page,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=max(next_power_of_2(group), 16),
        BLOCK_N=settings.block_n,
        SPLIT=SPLIT,
        WINDOW=window or 0,
        HAS_PARTS=has_parts,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
        enable_fp_fusion=True,
    )
    if has_parts:
        attention_merge_kernel[(num_heads, count)](
            part,
            part_stats,
            seq_lens,
            out,
            num_splits,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
            SPLIT=SPLIT,
            WINDOW=window or 0,
            num_warps=1,
            enable_fp_fusion=True,
        )
