"""The Triton silu_mul against its formula in float64."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.reference.silu_mul import silu_mul as reference
from qwell.kernels.triton.silu_mul import silu_mul


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 63), (2, 256), (17, 257), (2, 2500)])
def test_equals_the_formula(rows, width, dtype, interp_guard, nan_empty, assert_within):
    draw = torch.Generator().manual_seed(width)
    gate_up = (4 * torch.randn(rows, 2 * width, generator=draw)).to(dtype)
    with interp_guard(), nan_empty():
        y = silu_mul(gate_up)
    gate, up = gate_up.double().chunk(2, dim=1)
    expected = gate / (1 + torch.exp(-gate)) * up
    # An exponential, a sum, a quotient and a product in fp32, then a rounding to the dtype.
    precision = torch.finfo(dtype).eps / 2 + 8 * torch.finfo(torch.float32).eps
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert_within(y, expected, precision * expected.abs() + smallest)
    assert y.dtype == dtype


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_extremes_are_those_of_the_reference(interp_guard, assert_within):
    gate = torch.tensor([0.0, -0.0, 88.0, 1e30, -88.0, -100.0, -1e30, torch.inf, torch.nan])
    gate_up = torch.cat([gate, torch.full_like(gate, 2.0)])[None]
    with interp_guard():
        y = silu_mul(gate_up)
    # Below -88 the quotient is 0 or subnormal.
    assert_within(y, reference(gate_up), 1e-36 + 1e-6 * reference(gate_up).nan_to_num().abs())


def test_rows_have_the_same_bits_alone_and_in_batches(interp_guard):
    gate_up = torch.randn(40, 600, generator=torch.Generator().manual_seed(0)).bfloat16()
    with interp_guard():
        assert torch.equal(silu_mul(gate_up[7:8])[0], silu_mul(gate_up)[7])


def test_no_rows(interp_guard):
    with interp_guard():
        assert silu_mul(torch.zeros(0, 64)).shape == (0, 32)
