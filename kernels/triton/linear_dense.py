"""linear for dense weights of the model dtype."""

from __future__ import annotations

import triton
import triton.language as tl

from qwell.kernels.triton.linear_tile import store_tile, tile_of_program


@triton.jit(do_not_specialize=["M"])
def linear_dense_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    PART: tl.constexpr,
    SPREAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tile of x [M, K] times w [N, K] transposed, summed over all parts of K, or over one
    (SPREAD: part program_id(1) of y [parts, M, N])."""
    i_m, i_n = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, BLOCK_K)
    # Rows past the end are loaded as the last one: cheaper than a mask, and never stored.
    o_n = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - i_n * BLOCK_N)
    m_m = o_m < M - i_m * BLOCK_M
    p_x = x_ptr + (i_m * BLOCK_M).to(tl.int64) * K + o_m[:, None] * K + o_k[None, :]
    p_w = w_ptr + (i_n * BLOCK_N).to(tl.int64) * K + o_n[:, None] * K + o_k[None, :]

    i_first = tl.program_id(1) if SPREAD else 0
    i_end = i_first + 1 if SPREAD else (K + PART - 1) // PART
    b_sum = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for i_part in range(i_first, i_end):
        b_part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in range(i_part * PART, tl.minimum(i_part * PART + PART, K), BLOCK_K):
            if K % BLOCK_K == 0:
                b_w = tl.load(p_w + k)
                b_x = tl.load(p_x + k, mask=m_m[:, None], other=0.0)
            else:
                m_k = o_k < K - k
                b_w = tl.load(p_w + k, mask=m_k[None, :], other=0.0)
                b_x = tl.load(p_x + k, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_part = tl.dot(b_w, tl.trans(b_x), b_part, input_precision="ieee")
        b_sum += b_part
    store_tile(b_sum, y_ptr, bias_ptr, i_m, i_n, tl.program_id(1), M, N, HAS_BIAS, BLOCK_M, BLOCK_N)
