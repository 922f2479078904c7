"""What the fused linear kernels share: a few tokens times a few rows of a weight, summed over K.

A weight is read once and multiplied with a few tokens only, so memory is the limit and tensor
cores would idle: every thread multiplies what it loaded itself, 128 bits at a time, and threads
add up once, at the end. Tiles are [TOKENS, ROWS, K] from the loads on, x with one row and weights
with one token: loads of both then have the layout of their product, and nothing passes through
shared memory before the last sum.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def partial_sums(b_x, b_w, VECTOR: tl.constexpr):
    """Sums of VECTOR neighbouring products: fp32 [TOKENS, ROWS, K / VECTOR].

    b_x [TOKENS, 1, K] and b_w [1 or TOKENS, ROWS, K] in fp32. With the vectors that threads load,
    a sum stays in its thread; kept instead of products, sums leave the registers to loads.
    """
    b_product = b_x * b_w
    TOKENS: tl.constexpr = b_product.shape[0]
    ROWS: tl.constexpr = b_product.shape[1]
    VECTORS: tl.constexpr = b_product.shape[2] // VECTOR
    return tl.sum(tl.reshape(b_product, (TOKENS, ROWS, VECTORS, VECTOR)), axis=3)


@triton.jit
def products(
    x_ptr,
    norm_ptr,
    w_ptr,
    o_row,
    M,
    eps,
    K: tl.constexpr,
    HAS_NORM: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x [M, K], or with HAS_NORM its rms_norm, times rows o_row of w [N, K]: fp32 [TOKENS, ROWS].

    Nothing is rounded in between, so the norm's mean is taken along with the products.
    """
    # Tokens past the end are loaded as the last one: cheaper than a mask, and never stored.
    o_token = tl.minimum(tl.arange(0, TOKENS), M - 1)[:, None, None]
    o_k = tl.arange(0, BLOCK_K)[None, None, :]
    p_x = x_ptr + o_token * K + o_k
    p_norm = norm_ptr + o_k
    p_w = w_ptr + o_row.to(tl.int64)[None, :, None] * K + o_k
    ROWS: tl.constexpr = o_row.shape[0]
    VECTOR: tl.constexpr = 128 // w_ptr.dtype.element_ty.primitive_bitwidth
    b_sum = tl.zeros((TOKENS, ROWS, BLOCK_K // VECTOR), tl.float32)
    b_square = tl.zeros((TOKENS, 1, BLOCK_K // VECTOR), tl.float32)
    for k in range(0, K, BLOCK_K):
        b_w = _load(p_w, o_k, k, K, BLOCK_K)
        b_x = _load(p_x, o_k, k, K, BLOCK_K)
        if HAS_NORM:
            b_norm = _load(p_norm, o_k, k, K, BLOCK_K)
            b_w *= b_norm
            b_square += partial_sums(b_x, b_x, VECTOR)
        b_sum += partial_sums(b_x, b_w, VECTOR)
    b_y = tl.sum(b_sum, axis=2)
    if HAS_NORM:
        b_y *= tl.rsqrt(tl.sum(b_square, axis=2) / K + eps)
    return b_y


@triton.jit
def _load(p_tile, o_k, k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns k + o_k, in fp32; 0 past column K."""
    if K % BLOCK_K == 0:
        b_tile = tl.load(p_tile + k)
    else:
        b_tile = tl.load(p_tile + k, mask=o_k < K - k, other=0.0)
    return b_tile.to(tl.float32)


@triton.jit
def load_tokens(
    ptr,
    i_first,
    M,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Columns i_first + 0..ROWS of the first M rows of a tensor [M, N], for a program of THREADS.

    [TOKENS, ROWS, THREADS / (TOKENS ROWS) or 1], to be summed over the last axis, where all but the
    first are 0: every thread would load the whole of a tile that has fewer values than threads.
    """
    o_token = tl.arange(0, TOKENS)[:, None, None]
    o_n = i_first + tl.arange(0, ROWS)[None, :, None]
    COPIES: tl.constexpr = THREADS // (TOKENS * ROWS) if THREADS > TOKENS * ROWS else 1
    o_copy = tl.arange(0, COPIES)[None, None, :]
    mask = (o_token < M) & (o_n < N) & (o_copy == 0)
    return tl.load(ptr + o_token * N + o_n, mask=mask, other=0)


@triton.jit
def store_tokens(b_y, y_ptr, i_first, M, N: tl.constexpr):
    """Write b_y [TOKENS, ROWS] to columns i_first + 0..ROWS of y [M, N]."""
    o_token = tl.arange(0, b_y.shape[0])[:, None]
    o_n = i_first + tl.arange(0, b_y.shape[1])[None, :]
    mask = (o_token < M) & (o_n < N)
    tl.store(y_ptr + o_token * N + o_n, b_y.to(y_ptr.dtype.element_ty), mask=mask)
