"""What prefill and decode must compute alike, to the bit: tiles of keys, and splits of tiles.

Keys are taken in tiles of BLOCK_N and splits of SPLIT, both counted from key 0 of the sequence.
A split is an online softmax over its tiles (arXiv 1805.02867, in base 2), and splits are merged
one by one in ascending order. Where a split is computed, and with which other rows, is free.
Tiles and splits that a row does not see change no bit of it: they contribute weights of 0, and
scale what is there by exp2(0) = 1.

Products and sums that compilers may or may not fuse are written as fma, because the same row is
masked in one launch and not in another.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unmasked_tiles(first_position, last_position, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bounds of the tiles whose keys are all seen from all positions first..last; may cross."""
    begin = 0
    if WINDOW > 0:
        begin = tl.cdiv(tl.maximum(last_position + 1 - WINDOW, 0), BLOCK_N) * BLOCK_N
    return begin, (first_position + 1) // BLOCK_N * BLOCK_N


@triton.jit
def attend_tile(
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
    PAGE_STRIDE: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The split's softmax (maximum and sum [M], values [M, D]) with the tile at `start` added.

    k_ptr and v_ptr point to the head in page 0. Only with MASKED, keys may lie past `end` or be
    hidden from a position. scale_log2 is the scale of the scores, times log2(e).
    """
    o_key = start + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    o_row = b_pages.to(tl.int64) * PAGE_STRIDE + o_key % PAGE * HEAD_DIM
    o_kv = o_row[:, None] + o_d[None, :]
    if MASKED:
        m_kv = (o_key < end)[:, None] & (o_d < HEAD_DIM)[None, :]
        b_k = tl.load(k_ptr + o_kv, mask=m_kv, other=0.0)
        # Zeros, because a weight of 0 does not hide what an unwritten slot may hold.
        b_v = tl.load(v_ptr + o_kv, mask=m_kv, other=0.0)
    elif BLOCK_D == HEAD_DIM:
        b_k = tl.load(k_ptr + o_kv)
        b_v = tl.load(v_ptr + o_kv)
    else:
        m_d = (o_d < HEAD_DIM)[None, :]
        b_k = tl.load(k_ptr + o_kv, mask=m_d, other=0.0)
        b_v = tl.load(v_ptr + o_kv, mask=m_d, other=0.0)

    b_score = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    if MASKED:
        m_seen = o_key[None, :] <= o_position[:, None]
        if WINDOW > 0:
            m_seen &= o_key[None, :] > o_position[:, None] - WINDOW
        b_score = tl.where(m_seen, b_score, float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_score, axis=1) * scale_log2)
    b_base = b_new
    if MASKED:
        b_base = finite_base(b_new)
    b_p = tl.exp2(tl.fma(b_score, scale_log2, -b_base[:, None]))
    b_shrink = tl.exp2(b_max - b_base)
    b_sum = tl.fma(b_sum, b_shrink, tl.sum(b_p, axis=1))
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None], input_precision="ieee")
    return b_new, b_sum, b_acc


@triton.jit
def finite_base(b_max):
    """b_max, or 0 for rows that have seen no key yet: -inf - -inf would be NaN."""
    return tl.where(b_max == float("-inf"), 0.0, b_max)


@triton.jit
def merge_weights(b_max, b_split_max):
    """Maximum of what was merged so far and the next split, and the weights of the two."""
    b_new = tl.maximum(b_max, b_split_max)
    b_base = finite_base(b_new)
    return b_new, tl.exp2(b_max - b_base), tl.exp2(b_split_max - b_base)


@triton.jit
def merge(b_total, b_split, b_weight, b_split_weight):
    """Sums, or values, of what was merged so far and the next split."""
    return tl.fma(b_total, b_weight, b_split * b_split_weight)


@triton.jit
def normalised(b_acc, b_sum):
    """Values over sums of weights; rows without keys give 0."""
    return b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)
