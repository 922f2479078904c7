"""What the kernels of linear share: which tile a program computes, and how it leaves.

A tile is held as [BLOCK_N, BLOCK_M], weight rows first: they fill the 64 rows of Hopper's tensor
core instruction, and BLOCK_M, its free side, follows the number of tokens without another
instruction or another order of summing. That is what makes a token's bits independent of the
batch: K is summed in ascending tiles of fixed width within parts of fixed width, each from zero,
and the parts are added in ascending order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of_program(M, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(token tile, weight tile) of program_id(0), token tiles fastest.

    Programs that run together then share weight rows in the L2 cache, 8 token tiles at a time,
    so that the tokens of a long prompt stay there as well.
    """
    n_tiles: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    i_group = tl.program_id(0) // (8 * n_tiles)
    i_in_group = tl.program_id(0) % (8 * n_tiles)
    height = tl.minimum(tl.cdiv(M, BLOCK_M) - 8 * i_group, 8)
    return 8 * i_group + i_in_group % height, i_in_group // height


@triton.jit
def store_tile(
    b_sum,
    y_ptr,
    bias_ptr,
    i_m,
    i_n,
    i_part,
    M,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add the bias to a tile and write it transposed to y [parts, M, N]."""
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    if HAS_BIAS:
        b_sum += tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)[:, None]
    o_row = (i_part * M + o_m).to(tl.int64) * N
    tl.store(
        y_ptr + o_row[None, :] + o_n[:, None],
        b_sum.to(y_ptr.dtype.element_ty),
        mask=m_n[:, None] & (o_m < M)[None, :],
    )


@triton.jit(do_not_specialize=["M"])
def add_parts_kernel(
    parts_ptr,
    bias_ptr,
    y_ptr,
    M,
    N: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row program_id(0), columns program_id(1) of y [M, N] from parts [PARTS, M, N] in fp32."""
    i_m = tl.program_id(0)
    o_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for i_part in tl.static_range(PARTS):
        o_row = (i_part * M + i_m).to(tl.int64) * N
        b_sum += tl.load(parts_ptr + o_row + o_n, mask=m_n, other=0.0)
    if HAS_BIAS:
        b_sum += tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)
    o_row = i_m.to(tl.int64) * N
    tl.store(y_ptr + o_row + o_n, b_sum.to(y_ptr.dtype.element_ty), mask=m_n)
