"""linear for packed weights (kernels/weights.py): codes become numbers in registers.

The codes in one place of a row's words are 32 consecutive columns, so that shifting a tile of
words gives the operand of the tensor cores without moving anything between threads. Codes are
exact in the model dtypes, and scales multiply sums of products in fp32: no weight is rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qwell.kernels.triton.linear_tile import store_tile, tile_of_program


@triton.jit
def integers(b_words, b_zero, PLACE: tl.constexpr, BITS: tl.constexpr):
    """Integers in a place of words, minus their zero points, in fp32.

    A code q in the mantissa of 2^23 reads as 2^23 + q, from which 2^23 + z is subtracted exactly:
    conversion instructions have a fraction of the rate of additions.
    """
    b_codes = (b_words >> (BITS * PLACE)) & ((1 << BITS) - 1)
    return (b_codes | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + b_zero)


@triton.jit
def e4m3_numbers(b_words, PLACE: tl.constexpr):
    """float8_e4m3fn numbers in a place of words, in fp32; NaN patterns read as 480.

    Sign, 4 exponent and 3 mantissa bits move into an fp32 whose exponent is then off by the
    difference of the biases, 127 - 7. Bit operations, because sm_80 lacks the format and gfx942
    has another one; the arithmetic shift leaves the sign in place, and takes the exponent from
    bits 30 on to bits 26 on.
    """
    b_float = ((b_words << (24 - 8 * PLACE)) >> 4) & -0x78100000  # 0x87F00000
    return b_float.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120


@triton.jit
def exactly(b_numbers, b_like):
    """fp32 numbers that the dtype of b_like has as well, in that dtype.

    bfloat16 is the upper half of fp32. To round to it takes gfx942, which has no instruction for
    that, a third of the kernel's instructions.
    """
    if b_like.dtype == tl.bfloat16:
        b_upper = b_numbers.to(tl.int32, bitcast=True) >> 16
        return b_upper.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return b_numbers.to(b_like.dtype)


@triton.jit(do_not_specialize=["M"])
def linear_packed_kernel(
    x_ptr,
    w_ptr,
    scale_ptr,
    zero_ptr,
    bias_ptr,
    y_ptr,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    IS_FLOAT: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    PART: tl.constexpr,
    SPREAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """As linear_dense_kernel, for words w [K / 128, N, 32] of an IntWeight or Fp8Weight (IS_FLOAT).

    Scales and zeros are [K / GROUP, N]; scales of an Fp8Weight are [N / 128, K / 128].
    """
    BLOCKS: tl.constexpr = (K + 127) // 128
    i_m, i_n = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    o_m = tl.arange(0, BLOCK_M)
    o_k = tl.arange(0, 32)
    # Rows past the end are loaded as the last one: cheaper than a mask, and never stored.
    o_n = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - i_n * BLOCK_N)
    m_m = (o_m < M - i_m * BLOCK_M)[:, None]
    p_x = x_ptr + (i_m * BLOCK_M).to(tl.int64) * K + o_m[:, None] * K + o_k[None, :]
    p_w = w_ptr + i_n * BLOCK_N * 32 + o_n[:, None] * 32 + o_k[None, :]
    GROUP_STRIDE: tl.constexpr = 1 if IS_FLOAT else N
    if IS_FLOAT:
        p_scale = scale_ptr + i_n * BLOCK_N // 128 * BLOCKS
    else:
        p_scale = scale_ptr + i_n * BLOCK_N + o_n
    p_zero = zero_ptr + i_n * BLOCK_N + o_n

    i_first = tl.program_id(1) if SPREAD else 0
    i_end = i_first + 1 if SPREAD else (K + PART - 1) // PART
    # Scales and zeros of whole tiles are loaded a tile ahead: compilers do that for wide loads
    # only, and would have every tile wait for memory. More of them would take too many registers.
    SPAN: tl.constexpr = 128 if GROUP % 128 == 0 else 32
    AHEAD: tl.constexpr = 1 if SPAN == 128 else 0
    o_group = i_first * PART // GROUP * GROUP_STRIDE
    b_next_scale = tl.load(p_scale + o_group)
    if HAS_ZEROS:
        b_next_zero = tl.load(p_zero + o_group)
    b_sum = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for i_part in range(i_first, i_end):
        b_part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k_tile in range(i_part * PART, tl.minimum(i_part * PART + PART, K), 128):
            # No matrix has the 2^33 weights whose words would need 64-bit offsets.
            b_words = tl.load(p_w + k_tile // 128 * (N * 32)).to(tl.int32)
            for i_span in tl.static_range(128 // SPAN):
                # Past the end of K, x is 0 and the last scale as good as any.
                k_scale = tl.minimum(k_tile + SPAN * (i_span + AHEAD), K - 1)
                o_group = k_scale // GROUP * GROUP_STRIDE
                b_loaded = tl.load(p_scale + o_group)
                b_scale = b_next_scale if AHEAD else b_loaded
                b_next_scale = b_loaded
                b_zero = 1 << (BITS - 1)
                if HAS_ZEROS:
                    b_loaded = tl.load(p_zero + o_group)
                    b_zero = (b_next_zero if AHEAD else b_loaded).to(tl.float32)[:, None]
                    b_next_zero = b_loaded
                b_dot = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
                for i_run in tl.static_range(SPAN // 32):
                    i_place = SPAN // 32 * i_span + i_run
                    k = k_tile + 32 * i_place
                    m_x = m_m if K % 128 == 0 else m_m & (o_k < K - k)[None, :]
                    b_x = tl.load(p_x + k, mask=m_x, other=0.0)
                    if IS_FLOAT:
                        b_w = e4m3_numbers(b_words, i_place)
                    else:
                        b_w = integers(b_words, b_zero, i_place, BITS)
                    b_w = exactly(b_w, b_x)
                    b_dot = tl.dot(b_w, tl.trans(b_x), b_dot, input_precision="ieee")
                if not IS_FLOAT:
                    b_scale = b_scale.to(tl.float32)[:, None]
                b_part += b_dot * b_scale
        b_sum += b_part
    store_tile(b_sum, y_ptr, bias_ptr, i_m, i_n, tl.program_id(1), M, N, HAS_BIAS, BLOCK_M, BLOCK_N)
