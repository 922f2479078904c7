"""Finding the largest values of a row without sorting it, for sample and logprobs.

A row is `size` fp32 values at x_ptr, read in blocks by the one program that owns it. Thresholds
are found by bisection over the bits of a float, so they are exact: they are values of the row.
"""

from __future__ import annotations

import triton
import triton.language as tl

PAD = tl.constexpr(16)


@triton.jit
def order_of(value):
    """An fp32 scalar as an int32 of the same order: of negative floats the lower bits turn."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(order):
    """The inverse of order_of."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def upper_middle(low, high):
    """(low + high + 1) / 2 of two orders, whose sum may overflow."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def load_block(x_ptr, start, size, BLOCK: tl.constexpr):
    """Offsets of a block and its values, -inf past the end; start is a multiple of BLOCK."""
    o_x = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
    return o_x, tl.load(x_ptr + o_x, mask=o_x < size, other=float("-inf"))


@triton.jit
def column_maxima(x_ptr, size, BLOCK: tl.constexpr):
    """Maximum over every BLOCK-th value: a block that holds the row's maximum.

    The k-th largest of these is at most the k-th largest of the row.
    """
    b_top = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in tl.range(0, size, BLOCK, loop_unroll_factor=2):
        _, b_x = load_block(x_ptr, start, size, BLOCK)
        b_top = tl.maximum(b_top, b_x)
    return b_top


@triton.jit
def kth_largest(b_x, k):
    """The k-th largest value of a block, k >= 1; -inf if it has fewer values."""
    low = order_of(tl.full([], float("-inf"), tl.float32))
    high = order_of(tl.max(b_x))
    while low < high:
        middle = upper_middle(low, high)
        enough = tl.sum((b_x >= value_of(middle)).to(tl.int32)) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return value_of(low)


@triton.jit
def gather_at_least(
    x_ptr, size, floor, value_ptr, id_ptr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr
):
    """Copy the values from `floor` up, and their offsets, in order; their number.

    Copies of -inf and offset 0 fill up a multiple of PAD, so that a mask by the size of the copy
    does not break up wide loads. A number above CAPACITY says that the copy is incomplete.
    """
    count = tl.full([], 0, tl.int32)
    for start in range(0, size, BLOCK):
        o_x, b_x = load_block(x_ptr, start, size, BLOCK)
        m_x = (b_x >= floor) & (o_x < size)
        found = tl.sum(m_x.to(tl.int32))
        if found > 0:
            o_copy = count + tl.cumsum(m_x.to(tl.int32)) - 1
            m_copy = m_x & (o_copy < CAPACITY)
            tl.store(value_ptr + o_copy, b_x, mask=m_copy)
            tl.store(id_ptr + o_copy, o_x, mask=m_copy)
        count += found
    o_pad = count + tl.arange(0, PAD)
    m_pad = o_pad < tl.minimum(tl.cdiv(count, PAD) * PAD, CAPACITY)
    tl.store(value_ptr + o_pad, tl.full([PAD], float("-inf"), tl.float32), mask=m_pad)
    tl.store(id_ptr + o_pad, tl.zeros([PAD], tl.int32), mask=m_pad)
    tl.debug_barrier()  # the copies are read by other threads than wrote them
    return count


@triton.jit
def nth_equal(x_ptr, size, value, n, BLOCK: tl.constexpr):
    """Offset of the n-th (from 0) element that equals `value`; size - 1 if there are fewer."""
    before = tl.full([], 0, tl.int32)
    start = tl.full([], 0, tl.int32)
    _, b_x = load_block(x_ptr, start, size, BLOCK)
    found = tl.sum((b_x == value).to(tl.int32))
    while (before + found <= n) & (start + BLOCK < size):
        before += found
        start += BLOCK
        _, b_x = load_block(x_ptr, start, size, BLOCK)
        found = tl.sum((b_x == value).to(tl.int32))
    passed = before + tl.cumsum((b_x == value).to(tl.int32)) <= n
    return tl.minimum(start + tl.sum(passed.to(tl.int32)), size - 1)
