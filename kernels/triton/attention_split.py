"""What a program of decode does with a split: attend to its keys, and store what that came to."""

from __future__ import annotations

import triton
import triton.language as tl

from qwell.kernels.triton.attention_tile import attend_tile, unmasked_tiles


@triton.jit
def _attend(
    b_q,
    b_max,
    b_sum,
    b_acc,
    k_ptr,
    v_ptr,
    b_table,
    first_page,
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
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the tiles from key `first` to `last` to the split, whose pages b_table holds."""
    for start in range(first, last, BLOCK_N):
        o_page = (start + tl.arange(0, BLOCK_N)) // PAGE - first_page
        b_pages = tl.gather(b_table, o_page, axis=0)
        b_max, b_sum, b_acc = attend_tile(
            b_q,
            b_max,
            b_sum,
            b_acc,
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
    return b_max, b_sum, b_acc


@triton.jit
def attend_split(
    b_q,
    b_max,
    b_sum,
    b_acc,
    k_ptr,
    v_ptr,
    table_ptr,
    i_split,
    position,
    scale_log2,
    NUM_KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """The softmax (maximum and sum [M], values [M, D]) with the keys of a split added.

    They are those that a query at `position` sees, which may be none. k_ptr and v_ptr point to
    the head in page 0, table_ptr to the pages of the sequence.
    """
    end = position + 1
    first_key = tl.maximum(end - WINDOW, 0) if WINDOW > 0 else 0
    begin_full, end_full = unmasked_tiles(position, position, WINDOW, BLOCK_N)
    o_position = position + tl.zeros((BLOCK_M,), tl.int32)
    PAGE_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE * HEAD_DIM
    # Loaded once for all tiles: no load of the loop waits for another, and none is narrow.
    first_page = i_split * SPLIT // PAGE
    o_page = first_page + tl.arange(0, (SPLIT + PAGE - 1) // PAGE)
    b_table = tl.load(table_ptr + o_page, mask=o_page * PAGE < end, other=0)
    first = tl.maximum(i_split * SPLIT, first_key // BLOCK_N * BLOCK_N)
    last = tl.minimum((i_split + 1) * SPLIT, end)
    begin = tl.minimum(tl.maximum(begin_full, first), last)
    stop = tl.maximum(tl.minimum(end_full, last), begin)
    if WINDOW > 0:
        b_max, b_sum, b_acc = _attend(
            b_q, b_max, b_sum, b_acc, k_ptr, v_ptr, b_table, first_page, first, begin, end,
            o_position, scale_log2, PAGE_STRIDE, PAGE, HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW,
            MASKED=True,
        )  # fmt: skip
    b_max, b_sum, b_acc = _attend(
        b_q, b_max, b_sum, b_acc, k_ptr, v_ptr, b_table, first_page, begin, stop, end,
        o_position, scale_log2, PAGE_STRIDE, PAGE, HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW,
        MASKED=False,
    )  # fmt: skip
    return _attend(
        b_q, b_max, b_sum, b_acc, k_ptr, v_ptr, b_table, first_page, stop, last, end,
        o_position, scale_log2, PAGE_STRIDE, PAGE, HEAD_DIM, BLOCK_D, BLOCK_N, WINDOW,
        MASKED=True,
    )  # fmt: skip


@triton.jit
def store_split(
    part_ptr,
    part_stats_ptr,
    b_max,
    b_sum,
    b_acc,
    i_part,
    o_head,
    m_row,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store values to part [parts, Hq, D], with maximum and sum in part_stats [parts, Hq, 2]."""
    o_part = i_part * NUM_HEADS + o_head
    o_d = tl.arange(0, BLOCK_D)
    o_acc = o_part[:, None] * HEAD_DIM + o_d[None, :]
    tl.store(part_ptr + o_acc, b_acc, mask=m_row[:, None] & (o_d < HEAD_DIM)[None, :])
    tl.store(part_stats_ptr + o_part * 2, b_max, mask=m_row)
    tl.store(part_stats_ptr + o_part * 2 + 1, b_sum, mask=m_row)
