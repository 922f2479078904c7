"""The fused linear kernels of Triton: their settings and refusals."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.fused_ops import Splits
from qwell.kernels.triton.configs import gemv
from qwell.kernels.triton.configs import merge_linear_add as merge_config
from qwell.kernels.triton.linear_add import linear_add
from qwell.kernels.triton.merge_linear_add import merge_linear_add
from qwell.kernels.triton.norm_linear import norm_linear
from qwell.kernels.triton.norm_linear_silu_mul import norm_linear_silu_mul

X, WEIGHT, NORM, RESIDUAL = torch.zeros(2, 8), torch.zeros(6, 8), torch.ones(8), torch.zeros(2, 6)
LENS = torch.ones(2, dtype=torch.int32)
VALUES, STATS = torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 2, 2)


@pytest.mark.parametrize("rows", [gemv.ROWS, merge_config.ROWS])
def test_threads_load_128_bits_of_a_row(rows):
    """A row's part is as wide as its threads together, so that none loads another's or nothing."""
    for arch, chosen in rows.items():
        for row in chosen:
            assert row.block_k == 8 * row.num_warps * (64 if arch.startswith("gfx") else 32)


def test_gate_and_up_share_a_program():
    assert all(row.block_n % 2 == 0 for rows in gemv.ROWS.values() for row in rows)


@pytest.mark.parametrize(
    ("x", "norm", "weight", "bias", "message"),
    [
        (torch.zeros(5, 8), NORM, WEIGHT, None, r"x must have shape \[T <= 4, .* got \(5, 8\)"),
        (torch.zeros(8), NORM, WEIGHT, None, r"x must have shape .* got \(8,\)"),
        (X.double(), NORM, WEIGHT, None, "x must be one of .*float64"),
        (X.t().contiguous().t(), NORM, WEIGHT, None, "x must be contiguous"),
        (X, NORM[:4], WEIGHT, None, r"norm must have shape \(8,\), got \(4,\)"),
        (X, NORM.half(), WEIGHT, None, "norm must be torch.float32, got torch.float16"),
        (X, NORM, torch.zeros(6, 7), None, r"weight must have shape \(6, 8\), got \(6, 7\)"),
        (X, NORM, torch.zeros(6), None, r"weight must have shape \[N, 8\], got \(6,\)"),
        (X, NORM, WEIGHT.bfloat16(), None, "weight must be torch.float32, got torch.bfloat16"),
        (X, NORM, WEIGHT, torch.zeros(5), r"bias must have shape \(6,\), got \(5,\)"),
    ],
)
def test_norm_linear_refuses_what_it_would_misread(x, norm, weight, bias, message):
    with pytest.raises(KernelError, match=f"^norm_linear: {message}"):
        norm_linear(x, norm, 1e-6, weight, bias)


@pytest.mark.parametrize(
    ("x", "gate_up", "message"),
    [
        (torch.zeros(5, 8), WEIGHT, r"x must have shape \[T <= 4, .* got \(5, 8\)"),
        (X, torch.zeros(5, 8), r"gate_up must have shape \[2 I, 8\], got \(5, 8\)"),
        (X, WEIGHT.half(), "gate_up must be torch.float32, got torch.float16"),
    ],
)
def test_norm_linear_silu_mul_refuses_what_it_would_misread(x, gate_up, message):
    with pytest.raises(KernelError, match=f"^norm_linear_silu_mul: {message}"):
        norm_linear_silu_mul(x, NORM, 1e-6, gate_up)


@pytest.mark.parametrize(
    ("x", "residual", "message"),
    [
        (torch.zeros(5, 8), torch.zeros(5, 6), r"x must have shape \[T <= 4, .* got \(5, 8\)"),
        (X, torch.zeros(2, 5), r"residual must have shape \(2, 6\), got \(2, 5\)"),
        (X, RESIDUAL.half(), "residual must be torch.float32, got torch.float16"),
        (X, RESIDUAL.to("meta"), "residual must be on cpu, got meta"),
    ],
)
def test_linear_add_refuses_what_it_would_misread(x, residual, message):
    with pytest.raises(KernelError, match=f"^linear_add: {message}"):
        linear_add(x, WEIGHT, residual)


@pytest.mark.parametrize(
    ("splits", "weight", "residual", "message"),
    [
        (Splits(VALUES[0], STATS, LENS, None), WEIGHT, RESIDUAL, "values must be float32"),
        (Splits(VALUES.half(), STATS, LENS, None), WEIGHT, RESIDUAL, "values must be float32"),
        (Splits(VALUES, STATS[..., :1], LENS, None), WEIGHT, RESIDUAL, "stats must have shape"),
        (
            Splits(VALUES, STATS, LENS.long(), None),
            WEIGHT,
            RESIDUAL,
            "seq_lens must be cont.* int32",
        ),
        (Splits(VALUES, STATS, LENS[:1], None), WEIGHT, RESIDUAL, "seq_lens must be cont.* int32"),
        (Splits(VALUES, STATS, LENS[0].expand(2), None), WEIGHT, RESIDUAL, "seq_lens must be cont"),
        (Splits(VALUES, STATS, LENS.to("meta"), None), WEIGHT, RESIDUAL, "seq_lens must be on cpu"),
        (Splits(VALUES, STATS, LENS, None), torch.zeros(6, 7), RESIDUAL, "weight must have shape"),
        (Splits(VALUES, STATS, LENS, None), WEIGHT, RESIDUAL[:1], "residual must have shape"),
        (Splits(VALUES, STATS, LENS, None), WEIGHT, RESIDUAL.double(), "residual must be one of"),
    ],
)
def test_merge_linear_add_refuses_what_it_would_misread(splits, weight, residual, message):
    with pytest.raises(KernelError, match=f"^merge_linear_add: {message}"):
        merge_linear_add(splits, weight, residual)
