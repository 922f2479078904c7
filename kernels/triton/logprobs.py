"""logprobs for GPUs: one program a row, the most likely ids without a sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_logits
from qwell.kernels.errors import KernelError
from qwell.kernels.ops import MAX_TOP_LOGPROBS
from qwell.kernels.triton.configs.logprobs import settings
from qwell.kernels.triton.launch import arch_of
from qwell.kernels.triton.select import (
    PAD,
    column_maxima,
    gather_at_least,
    kth_largest,
    load_block,
    order_of,
    value_of,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp_sum(x_ptr, size, x_max, BLOCK: tl.constexpr):
    """Sum of exp(x - x_max) in fp32."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        _, b_x = load_block(x_ptr, start, size, BLOCK)
        b_sum += tl.exp2((b_x - x_max) * LOG2_E)
    return tl.sum(b_sum)


@triton.jit
def largest_rank_below(x_ptr, size, limit, BLOCK: tl.constexpr):
    """The largest rank under `limit` in a row; an element's rank is its order, then its offset.

    Of equal values the one at the lower offset ranks higher.
    """
    b_best = tl.full([BLOCK], -(2**63), tl.int64)
    for start in range(0, size, BLOCK):
        o_x, b_x = load_block(x_ptr, start, size, BLOCK)
        b_x = tl.where(b_x == 0.0, 0.0, b_x)  # not -0.0, which the order puts below 0.0
        b_rank = (order_of(b_x).to(tl.int64) << 32) | (2**31 - 1 - o_x).to(tl.int64)
        b_best = tl.maximum(b_best, tl.where(b_rank < limit, b_rank, b_best))
    return tl.max(b_best)


@triton.jit
def write_top(
    x_ptr,
    size,
    id_ptr,
    x_max,
    log_sum,
    top_id_ptr,
    top_logprob_ptr,
    top,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The `top` most likely of a row's values, whose ids are at id_ptr, or are their offsets."""
    rank = tl.full([], 2**63 - 1, tl.int64)
    for t in range(top):
        rank = largest_rank_below(x_ptr, size, rank, BLOCK)
        next_id = (2**31 - 1 - (rank & (2**31 - 1))).to(tl.int32)
        if HAS_IDS:
            next_id = tl.load(id_ptr + next_id)
        value = value_of((rank >> 32).to(tl.int32))
        tl.store(top_id_ptr + t, next_id)
        tl.store(top_logprob_ptr + t, value - x_max - log_sum)


@triton.jit(do_not_specialize=["top"])
def logprobs_kernel(
    logits_ptr,
    id_ptr,
    logprob_ptr,
    top_id_ptr,
    top_logprob_ptr,
    candidate_ptr,
    candidate_id_ptr,
    top,
    V: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row program_id of the three results."""
    i_row = tl.program_id(0)
    x_ptr = logits_ptr + i_row.to(tl.int64) * V
    b_top = column_maxima(x_ptr, V, BLOCK)
    x_max = tl.max(b_top)
    log_sum = tl.log(exp_sum(x_ptr, V, x_max, BLOCK))

    x_given = tl.load(x_ptr + tl.load(id_ptr + i_row))
    tl.store(logprob_ptr + i_row, x_given - x_max - log_sum)

    if top > 0:
        candidate_ptr += i_row.to(tl.int64) * CAPACITY
        candidate_id_ptr += i_row.to(tl.int64) * CAPACITY
        floor = kth_largest(b_top, top)
        count = gather_at_least(x_ptr, V, floor, candidate_ptr, candidate_id_ptr, CAPACITY, BLOCK)
        narrowed = (count >= top) & (count <= CAPACITY)  # fewer: a row with NaN
        top_id_ptr += i_row * top
        top_logprob_ptr += i_row * top
        # Not one pointer that is chosen: Triton 3.6 cannot compile that for AMD GPUs.
        if narrowed:
            size = tl.cdiv(count, PAD) * PAD
            write_top(
                candidate_ptr,
                size,
                candidate_id_ptr,
                x_max,
                log_sum,
                top_id_ptr,
                top_logprob_ptr,
                top,
                True,
                BLOCK,
            )
        else:
            write_top(
                x_ptr, V, id_ptr, x_max, log_sum, top_id_ptr, top_logprob_ptr, top, False, BLOCK
            )


def logprobs(logits: Tensor, ids: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of ids [S], and the `top` most likely ids, under fp32 logits [S, V].

    Raises KernelError for logits or ids of another shape or dtype, and for a `top` outside
    0..min(V, MAX_TOP_LOGPROBS).
    """
    rows, vocabulary = _check(logits, ids, top)
    chosen = settings(arch_of(logits.device))
    given = logits.new_empty(rows)
    top_ids = torch.empty(rows, top, dtype=torch.int32, device=logits.device)
    top_logprobs = logits.new_empty(rows, top)
    candidates = logits.new_empty(rows, chosen.capacity)
    if rows > 0:
        logprobs_kernel[(rows,)](
            logits,
            ids,
            given,
            top_ids,
            top_logprobs,
            candidates,
            torch.empty_like(candidates, dtype=torch.int32),
            top,
            V=vocabulary,
            CAPACITY=chosen.capacity,
            BLOCK=chosen.block,
            num_warps=chosen.num_warps,
            enable_fp_fusion=True,
        )
    return given, top_ids, top_logprobs


def _check(logits: Tensor, ids: Tensor, top: int) -> tuple[int, int]:
    """Check the arguments and return (S, V)."""
    rows, vocabulary = check_logits("logprobs", logits)
    if ids.shape != (rows,):
        raise KernelError(f"logprobs: ids must have shape ({rows},), got {tuple(ids.shape)}")
    most = min(vocabulary, MAX_TOP_LOGPROBS)
    if not 0 <= top <= most:
        raise KernelError(f"logprobs: top must be in 0..{most}, got {top}")
    return rows, vocabulary
