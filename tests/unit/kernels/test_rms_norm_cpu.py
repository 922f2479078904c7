"""rms_norm on CPUs: the reference and the native kernel on every instruction set, by definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.native.rms_norm import bind
from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.reference.rms_norm import rms_norm as reference

EPS = 1e-6
NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}
native = NATIVE[next(iter(ISAS))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

each_isa = pytest.mark.parametrize("isa", NATIVE)


@st.composite
def arguments(draw):
    """(x, weight, residual or None) of any shape, dtype and magnitude that fp16 can square."""
    rows, width = draw(st.integers(1, 8)), draw(st.integers(1, 600))
    dtype = draw(st.sampled_from(DTYPES))
    size = 10.0 ** draw(st.integers(-4, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x, residual = (size * torch.randn(2, rows, width, generator=generator)).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    return x, weight, residual if draw(st.booleans()) else None


@pytest.mark.parametrize("implementation", [reference, *NATIVE.values()], ids=["ref", *NATIVE])
@given(arguments())
def test_equals_definition(
    implementation, nan_empty, assert_within, rms_norm_definition, arguments
):
    x, weight, residual = arguments
    expected, tolerance, expected_s = rms_norm_definition(x, weight, EPS, residual)
    with nan_empty():
        y, s = implementation(x, weight, EPS, residual)
    assert_within(y, expected, tolerance)
    assert_within(s, expected_s, 0.0)
    assert (s is x) == (residual is None)
    assert y.dtype == s.dtype == x.dtype


@each_isa
@given(arguments())
def test_equals_reference(isa, nan_empty, assert_within, arguments):
    x, weight, residual = arguments
    with nan_empty():
        y, s = NATIVE[isa](x, weight, EPS, residual)
    expected, expected_s = reference(x, weight, EPS, residual)
    # fp32: both sum with their own errors. 16 bits: such an error can end on the two sides of
    # a rounding of the normalised value, which is an ulp, and then of y, which is another.
    precision = torch.finfo(x.dtype).eps
    ulps = x.shape[1] / 32 + 16 if x.dtype == torch.float32 else 2
    smallest = torch.finfo(x.dtype).smallest_normal * precision
    tolerance = ulps * precision * expected.abs().double() + smallest * (weight.abs() + 1)
    assert_within(y, expected, tolerance)
    assert_within(s, expected_s, 0.0)


@each_isa
@given(arguments())
def test_every_isa_gives_the_same_bits(isa, arguments):
    x, weight, residual = arguments
    y, s = NATIVE[isa](x, weight, EPS, residual)
    portable_y, portable_s = NATIVE["portable"](x, weight, EPS, residual)
    assert torch.equal(y, portable_y)
    assert torch.equal(s, portable_s)


@each_isa
@given(arguments(), st.integers(1, 17))
def test_bits_of_a_row_depend_on_nothing_else(isa, arguments, shift):
    x, weight, residual = arguments
    y, s = NATIVE[isa](x, weight, EPS, residual)
    for row in range(x.shape[0]):
        alone = [_at_offset(t[row : row + 1], shift) for t in (x, residual) if t is not None]
        row_y, row_s = NATIVE[isa](alone[0], weight, EPS, *alone[1:])
        assert torch.equal(row_y, y[row : row + 1])
        assert torch.equal(row_s, s[row : row + 1])


def _at_offset(tensor, elements):
    """A copy that starts so many elements after an aligned address."""
    room = torch.zeros(tensor.numel() + elements, dtype=tensor.dtype)
    room[elements:] = tensor.flatten()
    return room[elements:].view(tensor.shape)


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf, 0.0, -0.0])
@pytest.mark.parametrize("width", [7, 100])
def test_special_values_propagate_like_the_reference(isa, dtype, special, width, assert_within):
    x = torch.ones(3, width, dtype=dtype)
    x[1, 3] = special
    for residual in (None, torch.ones_like(x)):
        y, s = NATIVE[isa](x, torch.ones(width, dtype=dtype), EPS, residual)
        expected, expected_s = reference(x, torch.ones(width, dtype=dtype), EPS, residual)
        assert_within(y, expected, 2 * torch.finfo(dtype).eps)
        assert_within(s, expected_s, 0.0)


@each_isa
def test_squares_that_overflow_give_zeros_like_the_reference(isa):
    x = torch.full((1, 8), 3e38)
    y, _ = NATIVE[isa](x, torch.ones(8), EPS)
    assert torch.equal(y, reference(x, torch.ones(8), EPS)[0])
    assert torch.equal(y, torch.zeros(1, 8))


def test_no_rows():
    y, s = native(torch.empty(0, 8), torch.ones(8), EPS, torch.empty(0, 8))
    assert y.shape == s.shape == (0, 8)


def _zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("x", "weight", "residual", "message"),
    [
        (_zeros(8), _zeros(8), None, r"x must have shape \[T, N >= 1\], got \(8,\)"),
        (_zeros(2, 0), _zeros(0), None, r"x must have shape \[T, N >= 1\], got \(2, 0\)"),
        (_zeros(2, 8, dtype=torch.float64), _zeros(8), None, "x must be one of .*float64"),
        (_zeros(8, 2).T, _zeros(8), None, r"x must be contiguous, got strides \(1, 2\)"),
        (_zeros(2, 8), _zeros(4), None, r"weight must have shape \(8,\), got \(4,\)"),
        (_zeros(2, 8), _zeros(16)[::2], None, "weight must be contiguous"),
        (_zeros(2, 8), _zeros(8, dtype=torch.float16), None, "weight must be torch.float32"),
        (_zeros(2, 8), _zeros(8), _zeros(3, 8), r"residual must have shape \(2, 8\)"),
        (_zeros(2, 8), _zeros(8), _zeros(8, 2).T, "residual must be contiguous"),
        (_zeros(2, 8), _zeros(8).to("meta"), None, "weight must be on cpu, got meta"),
        (_zeros(2, 8).to("meta"), _zeros(8).to("meta"), None, "x must be on the CPU, got meta"),
    ],
)
def test_refuses_what_it_cannot_read(x, weight, residual, message):
    with pytest.raises(KernelError, match=f"rms_norm: {message}"):
        native(x, weight, EPS, residual)
