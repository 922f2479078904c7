"""The Triton rms_norm against its definition, in the guarded interpreter."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.reference.rms_norm import rms_norm as reference
from qwell.kernels.triton.rms_norm import rms_norm

EPS = 1e-6


@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("width", [1, 63, 64, 576, 1000, 1024, 4096])
def test_equals_definition_and_reference(
    width, rows, dtype, with_residual, interp_guard, nan_empty, assert_within, rms_norm_definition
):
    draw = torch.Generator().manual_seed(width * 100 + rows)
    x, residual = torch.randn(2, rows, width, generator=draw).to(dtype)
    weight = torch.randn(width, generator=draw).to(dtype)
    residual = residual if with_residual else None

    with interp_guard(), nan_empty():
        y, s = rms_norm(x, weight, EPS, residual)

    expected, tolerance, expected_s = rms_norm_definition(x, weight, EPS, residual)
    assert_within(y, expected, tolerance)
    assert_within(s, expected_s, 0.0)
    # Where fp32 errors end on the two sides of a rounding, y is off by an ulp of each factor.
    reference_y, reference_s = reference(x, weight, EPS, residual)
    ulps = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else (width / 32 + 16) * 2**-24
    assert_within(y, reference_y, ulps * reference_y.abs().double())
    assert_within(s, reference_s, 0.0)
    assert (s is x) == (residual is None)


def test_no_rows(interp_guard):
    x = torch.empty(0, 64)
    with interp_guard():
        y, s = rms_norm(x, torch.ones(64), EPS)
    assert y.shape == s.shape == (0, 64)


def test_nan_and_infinity_stay_in_their_rows(interp_guard):
    x = torch.ones(3, 100)
    x[0, 5], x[1, 7] = torch.nan, torch.inf
    with interp_guard():
        y, _ = rms_norm(x, torch.ones(100), EPS)
    expected, _ = reference(x, torch.ones(100), EPS)
    torch.testing.assert_close(y, expected, equal_nan=True)
