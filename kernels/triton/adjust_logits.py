"""adjust_logits for GPUs: one program a row, which touches the listed ids alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_logits
from qwell.kernels.errors import KernelError


@triton.jit
def adjusted(b_x, b_count, b_bias, repetition, presence, frequency):
    """Logits after all steps, each rounded to fp32."""
    b_repeated = tl.where(b_x >= 0, tl.div_rn(b_x, repetition), b_x * repetition)
    b_x = tl.where(b_count >= 0, b_repeated, b_x)
    b_less = b_x - frequency * b_count.to(tl.float32) - presence
    return tl.where(b_count > 0, b_less, b_x) + b_bias


@triton.jit
def adjust_logits_kernel(
    logits_ptr,
    value_ptr,
    id_ptr,
    count_ptr,
    bias_ptr,
    cu_ids_ptr,
    newest_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    only_listed_ptr,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adjust row program_id. All of it is computed, to value_ptr, before any of it is written."""
    i_row = tl.program_id(0)
    x_ptr = logits_ptr + i_row.to(tl.int64) * V
    repetition = tl.load(repetition_ptr + i_row).to(tl.float32)
    presence = tl.load(presence_ptr + i_row).to(tl.float32)
    frequency = tl.load(frequency_ptr + i_row).to(tl.float32)
    newest = tl.load(newest_ptr + i_row)
    first = tl.load(cu_ids_ptr + i_row)
    last = tl.load(cu_ids_ptr + i_row + 1)

    found = tl.full([], 0, tl.int32)
    for start in range(first, last, BLOCK):
        o_id = start + tl.arange(0, BLOCK)
        m_id = o_id < last
        b_id = tl.load(id_ptr + o_id, mask=m_id, other=0)
        b_count = tl.load(count_ptr + o_id, mask=m_id, other=-1)
        b_bias = tl.load(bias_ptr + o_id, mask=m_id, other=0.0).to(tl.float32)
        m_newest = m_id & (b_id == newest)
        b_count = tl.where(m_newest, tl.maximum(b_count, 0) + 1, b_count)
        found += tl.sum(m_newest.to(tl.int32))
        b_x = tl.load(x_ptr + b_id, mask=m_id, other=0.0)
        b_x = adjusted(b_x, b_count, b_bias, repetition, presence, frequency)
        tl.store(value_ptr + o_id, b_x, mask=m_id)
    if (newest >= 0) & (found == 0):
        once = tl.full([], 1, tl.int32)
        x = adjusted(tl.load(x_ptr + newest), once, 0.0, repetition, presence, frequency)
        tl.store(x_ptr + newest, x)

    tl.debug_barrier()  # values are read, and logits overwritten, by other threads than above
    if tl.load(only_listed_ptr + i_row) != 0:
        for start in range(0, V, BLOCK):
            o_x = start + tl.arange(0, BLOCK)
            tl.store(x_ptr + o_x, tl.full([BLOCK], float("-inf"), tl.float32), mask=o_x < V)
        tl.debug_barrier()
    for start in range(first, last, BLOCK):
        o_id = start + tl.arange(0, BLOCK)
        m_id = o_id < last
        b_id = tl.load(id_ptr + o_id, mask=m_id, other=0)
        tl.store(x_ptr + b_id, tl.load(value_ptr + o_id, mask=m_id), mask=m_id)


def adjust_logits(
    logits: Tensor,
    ids: Tensor,
    counts: Tensor,
    biases: Tensor,
    cu_ids: Tensor,
    newest: Tensor,
    repetition_penalty: Tensor,
    presence_penalty: Tensor,
    frequency_penalty: Tensor,
    only_listed: Tensor,
) -> None:
    """Adjust fp32 logits [S, V] in place; the order of steps is the op's contract.

    Raises KernelError for logits or parameters of another shape or dtype. Ids are trusted.
    """
    rows, vocabulary = check_logits("adjust_logits", logits)
    for name, values, size in (
        ("ids", ids, len(ids)),
        ("counts", counts, len(ids)),
        ("biases", biases, len(ids)),
        ("cu_ids", cu_ids, rows + 1),
        ("newest", newest, rows),
        ("repetition_penalty", repetition_penalty, rows),
        ("presence_penalty", presence_penalty, rows),
        ("frequency_penalty", frequency_penalty, rows),
        ("only_listed", only_listed, rows),
    ):
        if values.shape != (size,):
            raise KernelError(
                f"adjust_logits: {name} must have shape ({size},), got {tuple(values.shape)}"
            )
    if rows == 0:
        return
    adjust_logits_kernel[(rows,)](
        logits,
        torch.empty(len(ids), dtype=torch.float32, device=logits.device),
        ids,
        counts,
        biases,
        cu_ids,
        newest,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        only_listed,
        V=vocabulary,
        BLOCK=1024,
        num_warps=4,
        # Every step is rounded, here as elsewhere.
        enable_fp_fusion=False,
    )
