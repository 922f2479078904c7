"""attention of sequences with any number of queries: flash attention over the paged cache.

A program holds BLOCK_M rows, the query heads of one key/value head for BLOCK_M // GROUP
consecutive queries, and walks over the keys they see (arXiv 2307.08691). Whatever the program,
a row's bits are those that attention_decode would give it; attention_tile.py says why.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.ops import Extent
from qwell.kernels.triton.attention_tile import (
    attend_tile,
    merge,
    merge_weights,
    normalised,
    unmasked_tiles,
)
from qwell.kernels.triton.configs.attention_decode import SPLIT
from qwell.kernels.triton.configs.attention_prefill import Settings
from qwell.kernels.triton.launch import cdiv, next_power_of_2


@triton.jit
def _load_pages(table_ptr, start, end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Pages of the tile at key `start`: one where it lies in one page, else one per key.

    Keys from `end` on get page 0, so that their addresses are valid.
    """
    o_key = start if PAGE % BLOCK_N == 0 else start + tl.arange(0, BLOCK_N)
    return tl.load(table_ptr + o_key // PAGE, mask=o_key < end, other=0)


@triton.jit
def _attend(
    b_q,
    b_max,
    b_sum,
    b_acc,
    b_split_max,
    b_split_sum,
    b_split_acc,
    k_ptr,
    v_ptr,
    table_ptr,
    first,
    last,
    end,
    o_position,
    scale_log2,
    PAGE_STRIDE: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the tiles from key `first` to `last` to the split, and full splits to the rest."""
    # One iteration ahead, because the pipeline does not look through two dependent loads.
    b_next = _load_pages(table_ptr, first, end, PAGE, BLOCK_N)
    for start in range(first, last, BLOCK_N):
        b_pages = b_next
        b_next = _load_pages(table_ptr, start + BLOCK_N, end, PAGE, BLOCK_N)
        b_split_max, b_split_sum, b_split_acc = attend_tile(
            b_q,
            b_split_max,
            b_split_sum,
            b_split_acc,
            k_ptr,
            v_ptr,
            b_pages,
            start,
            end,
            o_position,
            scale_log2,
            PAGE_STRIDE,
            PAGE,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
            WINDOW,
            MASKED,
        )
        if (start + BLOCK_N) % SPLIT == 0:
            b_max, b_old, b_new = merge_weights(b_max, b_split_max)
            b_sum = merge(b_sum, b_split_sum, b_old, b_new)
            b_acc = merge(b_acc, b_split_acc, b_old[:, None], b_new[:, None])
            b_split_max = tl.full(b_split_max.shape, float("-inf"), tl.float32)
            b_split_sum = tl.zeros(b_split_sum.shape, tl.float32)
            b_split_acc = tl.zeros(b_split_acc.shape, tl.float32)
    return b_max, b_sum, b_acc, b_split_max, b_split_sum, b_split_acc


@triton.jit(do_not_specialize=["num_decodes", "table_stride"])
def attention_prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    starts_ptr,
    lens_ptr,
    out_ptr,
    num_decodes,
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
):
    """Output rows of queries program_id(0) * BLOCK_M // GROUP on, counted from the last block."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    i_kv_head = tl.program_id(2)
    i_sequence = num_decodes + tl.program_id(1)
    row = tl.load(starts_ptr + i_sequence)
    num_queries = tl.load(starts_ptr + i_sequence + 1) - row
    # Last queries first: they see most keys, and the launch should not end waiting for them.
    i_query = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    if i_query >= num_queries:
        return

    o_row = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_row = (o_row < BLOCK_Q * GROUP) & (i_query + o_row // GROUP < num_queries)
    m_q = m_row[:, None] & (o_d < HEAD_DIM)[None, :]
    start_q = ((row + i_query).to(tl.int64) * NUM_KV_HEADS + i_kv_head) * (GROUP * HEAD_DIM)
    o_head = o_row // GROUP * (NUM_KV_HEADS * GROUP) + o_row % GROUP
    o_q = o_head[:, None] * HEAD_DIM + o_d[None, :]
    q_ptr += start_q
    out_ptr += start_q
    b_q = tl.load(q_ptr + o_q, mask=m_q, other=0.0)

    position = tl.load(lens_ptr + i_sequence) - num_queries + i_query
    last_position = position + tl.minimum(BLOCK_Q, num_queries - i_query) - 1
    end = last_position + 1
    o_position = position + o_row // GROUP
    begin_full, end_full = unmasked_tiles(position, last_position, WINDOW, BLOCK_N)

    PAGE_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE * HEAD_DIM
    k_ptr += i_kv_head * PAGE * HEAD_DIM
    v_ptr += i_kv_head * PAGE * HEAD_DIM
    table_ptr += i_sequence.to(tl.int64) * table_stride
    b_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_split_max, b_split_sum, b_split_acc = b_max, b_sum, b_acc
    if WINDOW > 0:
        first = tl.maximum(position + 1 - WINDOW, 0) // BLOCK_N * BLOCK_N
        b_max, b_sum, b_acc, b_split_max, b_split_sum, b_split_acc = _attend(
            b_q, b_max, b_sum, b_acc, b_split_max, b_split_sum, b_split_acc,
            k_ptr, v_ptr, table_ptr, first, tl.minimum(begin_full, end), end,
            o_position, scale_log2, PAGE_STRIDE, PAGE, HEAD_DIM, BLOCK_D, BLOCK_N, SPLIT, WINDOW,
            MASKED=True,
        )  # fmt: skip
    b_max, b_sum, b_acc, b_split_max, b_split_sum, b_split_acc = _attend(
        b_q, b_max, b_sum, b_acc, b_split_max, b_split_sum, b_split_acc,
        k_ptr, v_ptr, table_ptr, begin_full, end_full, end,
        o_position, scale_log2, PAGE_STRIDE, PAGE, HEAD_DIM, BLOCK_D, BLOCK_N, SPLIT, WINDOW,
        MASKED=False,
    )  # fmt: skip
    b_max, b_sum, b_acc, b_split_max, b_split_sum, b_split_acc = _attend(
        b_q, b_max, b_sum, b_acc, b_split_max, b_split_sum, b_split_acc,
        k_ptr, v_ptr, table_ptr, tl.maximum(begin_full, end_full), end, end,
        o_position, scale_log2, PAGE_STRIDE, PAGE, HEAD_DIM, BLOCK_D, BLOCK_N, SPLIT, WINDOW,
        MASKED=True,
    )  # fmt: skip

    b_max, b_old, b_new = merge_weights(b_max, b_split_max)
    b_sum = merge(b_sum, b_split_sum, b_old, b_new)
    b_acc = merge(b_acc, b_split_acc, b_old[:, None], b_new[:, None])
    b_out = normalised(b_acc, b_sum[:, None])
    # o_q by another formula: compilers would keep o_q in registers that the loops need.
    o_group = o_row * (65536 // GROUP + 1) // 65536
    o_out = (o_row + o_group * (NUM_KV_HEADS * GROUP - GROUP))[:, None] * HEAD_DIM + o_d[None, :]
    tl.store(out_ptr + o_out, b_out.to(out_ptr.dtype.element_ty), mask=m_q)


def attention_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    extent: Extent,
    scale: float,
    window: int | None,
    settings: Settings,
    block_n: int,
) -> None:
    """Write the rows of out [T, Hq * D] that belong to sequences extent.num_decodes and on.

    The arguments are those of attention, checked; block_n is the key tile of decode.
    """
    _, num_kv_heads, page, head_dim = k_cache.shape
    group = q.shape[1] // num_kv_heads
    block_m = max(settings.block_m, next_power_of_2(group))
    grid = (
        cdiv(extent.max_query_len, block_m // group),
        seq_lens.shape[0] - extent.num_decodes,
        num_kv_heads,
    )
    attention_prefill_kernel[grid](
        q,
        k_cache,
        v_cache,
        block_table,
        cu_seqlens_q,
        seq_lens,
        out,
        extent.num_decodes,
        block_table.stride(0),
        scale * math.log2(math.e),
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        PAGE=page,
        HEAD_DIM=head_dim,
        BLOCK_D=max(next_power_of_2(head_dim), 16),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        SPLIT=SPLIT,
        WINDOW=window or 0,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
        enable_fp_fusion=True,
    )
