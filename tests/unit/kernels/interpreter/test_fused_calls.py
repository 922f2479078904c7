"""The fused linears against their reference, on the calls that they are tuned and checked with."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from composed_ops import ComposedOps

from qwell.bench.gpu.calls import Step
from qwell.bench.gpu.fused_calls import FUSED_LINEARS, FusedCalls
from qwell.bench.gpu.fused_reference import FUSED_REFERENCE
from qwell.bench.gpu.parity import REFERENCE, parity
from qwell.bench.kernels.models import Model
from qwell.kernels.triton.linear_add import linear_add
from qwell.kernels.triton.merge_linear_add import merge_linear_add
from qwell.kernels.triton.norm_linear import norm_linear
from qwell.kernels.triton.norm_linear_silu_mul import norm_linear_silu_mul

CPU = torch.device("cpu")
TINY = Model("tiny", hidden=24, heads=4, kv_heads=2, head_dim=16, mlp=40, vocabulary=64)
# One split, a part of one, and more splits than a program holds at a time.
STEP = Step("few", TINY, (1, 1, 1), (256, 3, 2000))
OPS = dataclasses.replace(
    ComposedOps(REFERENCE).fused(),
    norm_linear=norm_linear,
    merge_linear_add=merge_linear_add,
    norm_linear_silu_mul=norm_linear_silu_mul,
    linear_add=linear_add,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fused_linears_are_right_on_their_calls(interp_guard, dtype):
    with interp_guard():
        rows = list(parity(CPU, lambda _: OPS, {dtype: (STEP,)}, FUSED_LINEARS, FusedCalls))
    assert [row.op for row in rows] == list(FUSED_LINEARS)
    assert [row for row in rows if not row.ok] == []


@pytest.mark.parametrize("op", FUSED_LINEARS)
def test_a_fused_linear_that_is_off_fails(op):
    def wrong(*arguments):
        return FUSED_REFERENCE[op](*arguments) * 1.001

    ops = dataclasses.replace(OPS, **{**FUSED_REFERENCE, op: wrong})
    # In fp32, as the reference rounds to a narrower dtype where fused ops do not.
    steps = {torch.float32: (STEP,)}
    rows = list(parity(CPU, lambda _: ops, steps, FUSED_LINEARS, FusedCalls))
    assert {row.op for row in rows if not row.ok} == {op}
