"""sample for GPUs: one program a row, thresholds by bisection instead of a sort.

Probabilities are integers, 2^40 for the most likely id of a row. Sums of integers do not depend
on their order: what is drawn depends neither on block sizes nor on the GPU's number of threads.
Below 2^-40 of the most likely id, an id is never drawn.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_logits
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.sample import settings
from qwell.kernels.triton.launch import arch_of
from qwell.kernels.triton.select import (
    PAD,
    column_maxima,
    gather_at_least,
    kth_largest,
    load_block,
    nth_equal,
    order_of,
    upper_middle,
    value_of,
)

WHOLE = tl.constexpr(2.0**40)
LOG2_E = tl.constexpr(1.4426950408889634)
# Temperatures below 1e-30 act as 1e-30: their inverse is no fp32, and only the maximum is left.
COLDEST = tl.constexpr(1e-30)
WIDEST = tl.constexpr(float("inf"))


@triton.jit
def mass_of(b_x, x_max, scale):
    """exp2((x - x_max) * scale) in units of 2^-40, as int64."""
    return (tl.exp2((b_x - x_max) * scale) * WHOLE).to(tl.int64)


@triton.jit
def amount(x_ptr, size, floor, x_max, scale, OF_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Mass, or number, of the values from `floor` up, which is above -inf for a number; int64."""
    b_sum = tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, size, BLOCK, loop_unroll_factor=2):
        _, b_x = load_block(x_ptr, start, size, BLOCK)
        b_amount = mass_of(b_x, x_max, scale) if OF_MASS else tl.full([BLOCK], 1, tl.int64)
        b_sum += tl.where(b_x >= floor, b_amount, 0)
    return tl.sum(b_sum)


@triton.jit
def highest_floor(
    x_ptr, size, floor, limit, x_max, scale, OF_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """The highest value, at least `floor`, from which up the amount still reaches `limit`."""
    low = order_of(floor)
    high = order_of(x_max)
    while low < high:
        middle = upper_middle(low, high)
        enough = amount(x_ptr, size, value_of(middle), x_max, scale, OF_MASS, BLOCK) >= limit
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return value_of(low)


@triton.jit
def kept_mass(
    x_ptr,
    start,
    size,
    x_max,
    scale,
    floor,
    last_tie,
    least_mass,
    center,
    reach,
    BLOCK: tl.constexpr,
):
    """Mass of a block's values that are above `floor`, or equal to it up to offset last_tie.

    And whose distance below x_max, scaled, is at most `reach` away from `center`.
    """
    o_x, b_x = load_block(x_ptr, start, size, BLOCK)
    b_mass = mass_of(b_x, x_max, scale)
    m_kept = (b_x > floor) | ((b_x == floor) & (o_x <= last_tie))
    m_kept &= tl.abs((x_max - b_x) * scale - center) <= reach
    return tl.where(m_kept & (b_mass >= least_mass), b_mass, 0)


@triton.jit
def kept_total(
    x_ptr, size, x_max, scale, floor, last_tie, least_mass, center, reach, BLOCK: tl.constexpr
):
    """Sum of kept_mass over a row."""
    b_total = tl.zeros([BLOCK], tl.int64)
    for start in tl.range(0, size, BLOCK, loop_unroll_factor=2):
        b_total += kept_mass(
            x_ptr, start, size, x_max, scale, floor, last_tie, least_mass, center, reach, BLOCK
        )
    return tl.sum(b_total)


@triton.jit
def mean_distance(x_ptr, size, x_max, scale, floor, last_tie, least_mass, BLOCK: tl.constexpr):
    """Mean over the kept mass of a value's distance below x_max, scaled.

    The entropy in bits, less the surprise of x_max. Integers again: their sum has no order.
    """
    b_total = tl.zeros([BLOCK], tl.int64)
    b_moment = tl.zeros([BLOCK], tl.int64)
    for start in range(0, size, BLOCK):
        b_mass = kept_mass(
            x_ptr, start, size, x_max, scale, floor, last_tie, least_mass, 0.0, WIDEST, BLOCK
        )
        _, b_x = load_block(x_ptr, start, size, BLOCK)
        b_distance = tl.where(b_mass > 0, (x_max - b_x) * scale, 0.0)
        b_total += b_mass
        b_moment += (tl.exp2(-b_distance) * b_distance * WHOLE).to(tl.int64)
    total = tl.maximum(tl.sum(b_total), 1)
    return (tl.sum(b_moment).to(tl.float64) / total.to(tl.float64)).to(tl.float32)


@triton.jit
def least_reach(
    x_ptr, size, x_max, scale, floor, last_tie, least_mass, center, limit, BLOCK: tl.constexpr
):
    """The least distance from `center` within which the kept mass reaches `limit`."""
    low = order_of(tl.full([], 0.0, tl.float32))
    high = order_of(tl.full([], WIDEST, tl.float32))
    while low < high:
        middle = low + (high - low) // 2
        inside = kept_total(
            x_ptr,
            size,
            x_max,
            scale,
            floor,
            last_tie,
            least_mass,
            center,
            value_of(middle),
            BLOCK,
        )
        enough = inside >= limit
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return value_of(low)


@triton.jit
def draw(
    x_ptr,
    size,
    x_max,
    scale,
    floor,
    last_tie,
    least_mass,
    center,
    reach,
    uniform,
    BLOCK: tl.constexpr,
):
    """Offset where the running sum of the kept mass passes `uniform` of its total."""
    total = kept_total(x_ptr, size, x_max, scale, floor, last_tie, least_mass, center, reach, BLOCK)
    target = tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)

    before = tl.full([], 0, tl.int64)
    place = tl.full([], 0, tl.int32)
    b_mass = kept_mass(
        x_ptr, place, size, x_max, scale, floor, last_tie, least_mass, center, reach, BLOCK
    )
    inside = tl.sum(b_mass)
    while (before + inside <= target) & (place + BLOCK < size):
        before += inside
        place += BLOCK
        b_mass = kept_mass(
            x_ptr, place, size, x_max, scale, floor, last_tie, least_mass, center, reach, BLOCK
        )
        inside = tl.sum(b_mass)
    passed = before + tl.cumsum(b_mass) <= target
    return tl.minimum(place + tl.sum(passed.to(tl.int32)), size - 1)


@triton.jit
def drawn_place(
    x_ptr,
    size,
    x_max,
    scale,
    floor,
    total,
    top_k,
    top_p,
    min_p,
    typical_p,
    uniform,
    has_top_k,
    BLOCK: tl.constexpr,
):
    """Offset of what is drawn from a row's values; those that are kept are at least `floor`.

    `total` is their mass, unless has_top_k.
    """
    if has_top_k:
        floor = highest_floor(x_ptr, size, floor, top_k, x_max, scale, False, BLOCK)
        total = amount(x_ptr, size, floor, x_max, scale, True, BLOCK)
    last_tie = size
    if top_p < 1.0:
        limit = tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)
        floor = highest_floor(x_ptr, size, floor, limit, x_max, scale, True, BLOCK)
        next_value = value_of(order_of(floor) + 1)
        above = amount(x_ptr, size, next_value, x_max, scale, True, BLOCK)
        # Of equal values the first ones are kept, as many as it takes to reach the limit.
        tie = tl.maximum(mass_of(floor, x_max, scale), 1)
        rank = tl.maximum((limit - above - 1) // tie, 0).to(tl.int32)
        last_tie = nth_equal(x_ptr, size, floor, rank, BLOCK)

    least_mass = tl.ceil(min_p * WHOLE).to(tl.int64)
    center = tl.full([], 0.0, tl.float32)
    reach = tl.full([], WIDEST, tl.float32)
    if typical_p < 1.0:
        total = kept_total(
            x_ptr, size, x_max, scale, floor, last_tie, least_mass, center, reach, BLOCK
        )
        limit = tl.maximum(tl.ceil(typical_p * total.to(tl.float64)).to(tl.int64), 1)
        center = mean_distance(x_ptr, size, x_max, scale, floor, last_tie, least_mass, BLOCK)
        reach = least_reach(
            x_ptr, size, x_max, scale, floor, last_tie, least_mass, center, limit, BLOCK
        )
    return draw(
        x_ptr, size, x_max, scale, floor, last_tie, least_mass, center, reach, uniform, BLOCK
    )


@triton.jit
def sample_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    typical_p_ptr,
    uniform_ptr,
    value_ptr,
    id_ptr,
    next_id_ptr,
    V: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Next id of row program_id; see kernels/ops.py for the order of the steps."""
    i_row = tl.program_id(0)
    x_ptr = logits_ptr + i_row.to(tl.int64) * V
    value_ptr += i_row.to(tl.int64) * CAPACITY
    id_ptr += i_row.to(tl.int64) * CAPACITY
    temperature = tl.load(temperature_ptr + i_row).to(tl.float64)

    b_top = column_maxima(x_ptr, V, BLOCK)
    x_max = tl.max(b_top)
    if temperature == 0.0:
        next_id = nth_equal(x_ptr, V, x_max, 0, BLOCK)
    else:
        top_k = tl.load(top_k_ptr + i_row)
        top_p = tl.load(top_p_ptr + i_row).to(tl.float64)
        scale = (1.0 / tl.maximum(temperature, COLDEST) * LOG2_E).to(tl.float32)
        x_max = tl.where(x_max == 0.0, 0.0, x_max)  # not -0.0, which the order puts below 0.0
        has_top_k = (top_k > 0) & (top_k < V)
        floor = tl.full([], float("-inf"), tl.float32)
        total = tl.full([], 0, tl.int64)  # mass that top-p is a part of
        count = tl.full([], 0, tl.int32)

        # Most ids cannot be among those kept. The others are copied aside, where the passes of
        # the bisections are short.
        if has_top_k | (top_p < 1.0):
            if has_top_k:
                if top_k <= BLOCK:
                    floor = kth_largest(b_top, top_k)
            else:
                # Ids below (1 - top_p) / V of the total cannot add up to what top-p leaves out.
                # Half of that, as the logarithm is rounded.
                total = amount(x_ptr, V, floor, x_max, scale, True, BLOCK)
                share = (1.0 - top_p) * total.to(tl.float64) / (2.0 * V * WHOLE)
                floor = x_max + tl.log2(share.to(tl.float32)) / scale
            count = gather_at_least(x_ptr, V, floor, value_ptr, id_ptr, CAPACITY, BLOCK)
        narrowed = (count > 0) & (count <= CAPACITY)  # none: not tried, or a row of NaN

        min_p = tl.load(min_p_ptr + i_row).to(tl.float64)
        typical_p = tl.load(typical_p_ptr + i_row).to(tl.float64)
        uniform = tl.load(uniform_ptr + i_row).to(tl.float64)
        # Not one pointer that is chosen: Triton 3.6 cannot compile that for AMD GPUs.
        if narrowed:
            size = tl.cdiv(count, PAD) * PAD
            place = drawn_place(
                value_ptr, size, x_max, scale, floor, total,
                top_k, top_p, min_p, typical_p, uniform, has_top_k, BLOCK,
            )  # fmt: skip
            next_id = tl.load(id_ptr + place)
        else:
            next_id = drawn_place(
                x_ptr, V, x_max, scale, floor, total,
                top_k, top_p, min_p, typical_p, uniform, has_top_k, BLOCK,
            )  # fmt: skip
    tl.store(next_id_ptr + i_row, next_id)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    typical_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Next ids [S] (int32) from fp32 logits [S, V]; the order of steps is the op's contract.

    Every id returned is in [0, V), whatever the logits. Draws differ from exact arithmetic only
    where `uniform` or top_p falls within rounding (some 2^-20 of the total) of a bound.
    Raises KernelError for logits or parameters of another shape or dtype.
    """
    rows, vocabulary = _check(
        logits,
        {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "typical_p": typical_p,
            "uniform": uniform,
        },
    )
    chosen = settings(arch_of(logits.device))
    next_ids = torch.empty(rows, dtype=torch.int32, device=logits.device)
    if rows == 0:
        return next_ids
    candidates = torch.empty(rows, chosen.capacity, dtype=torch.float32, device=logits.device)
    sample_kernel[(rows,)](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        typical_p,
        uniform,
        candidates,
        torch.empty_like(candidates, dtype=torch.int32),
        next_ids,
        V=vocabulary,
        CAPACITY=chosen.capacity,
        BLOCK=chosen.block,
        num_warps=chosen.num_warps,
        enable_fp_fusion=True,
    )
    return next_ids


def _check(logits: Tensor, parameters: Mapping[str, Tensor]) -> tuple[int, int]:
    """Check what a kernel would read wrongly and return (S, V)."""
    rows, vocabulary = check_logits("sample", logits)
    for name, values in parameters.items():
        if values.shape != (rows,):
            raise KernelError(
                f"sample: {name} must have shape ({rows},), got {tuple(values.shape)}"
            )
    return rows, vocabulary
