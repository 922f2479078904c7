"""The guard itself: small kernels that misbehave must be caught, right ones must be right."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def copy(x_ptr, y_ptr, size, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < size if MASKED else offset >= 0
    tl.store(y_ptr + offset, tl.load(x_ptr + offset, mask=mask), mask=mask)


@triton.jit
def store_everything(y_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, BLOCK), tl.program_id(0))


@triton.jit
def shift_left(x_ptr):
    i = tl.program_id(0)
    tl.store(x_ptr + i, tl.load(x_ptr + i + 1))


@triton.jit
def shift_right(x_ptr):
    i = tl.program_id(0)
    tl.store(x_ptr + i + 1, tl.load(x_ptr + i))


@triton.jit
def count(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


@triton.jit
def count_then_load(x_ptr, y_ptr):
    tl.atomic_add(x_ptr + tl.program_id(0), 1.0)
    tl.store(y_ptr, tl.load(x_ptr))


@triton.jit
def double(x_ptr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    b_x = tl.load(x_ptr + offset)
    tl.store(x_ptr + offset, b_x + b_x)


@triton.jit
def total(x_ptr, y_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, BLOCK))))


@triton.jit
def narrow(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    tl.store(y_ptr + offset, tl.load(x_ptr + offset).to(y_ptr.dtype.element_ty))


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    offset = row * SIZE + column
    tl.store(c_ptr + offset, tl.dot(tl.load(a_ptr + offset), tl.load(b_ptr + offset)))


def test_load_past_the_end_is_caught(interp_guard):
    x, y = torch.zeros(10), torch.zeros(16)
    message = "out-of-bounds load in 6 lanes, first at element 10 of x_ptr, which has 10"
    with interp_guard(), pytest.raises(InterpreterError, match=message):
        copy[(1,)](x, y, 10, BLOCK=16, MASKED=False)


def test_store_past_the_end_is_caught(interp_guard):
    x, y = torch.zeros(16), torch.zeros(10)
    with interp_guard(), pytest.raises(InterpreterError, match="out-of-bounds store in 6 lanes"):
        copy[(1,)](x, y, 10, BLOCK=16, MASKED=False)


def test_atomic_past_the_end_is_caught(interp_guard):
    x, y = torch.zeros(2), torch.zeros(1)
    with interp_guard(races=False), pytest.raises(InterpreterError, match="out-of-bounds atomic"):
        count_then_load[(3,)](x, y)


def test_masked_tail_passes(interp_guard):
    x, y = torch.arange(10.0), torch.zeros(10)
    with interp_guard():
        copy[(2,)](x, y, 10, BLOCK=8, MASKED=True)
    assert torch.equal(x, y)


def test_two_stores_to_one_place_are_a_race(interp_guard):
    message = "race: program 1 stores to y_ptr where program 0 stored"
    with interp_guard(), pytest.raises(InterpreterError, match=message):
        store_everything[(2,)](torch.zeros(8, dtype=torch.int32), BLOCK=8)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (shift_left, "program 1 stores to x_ptr where program 0 loaded"),
        (shift_right, "program 1 loads x_ptr where program 0 stored"),
    ],
)
def test_loads_of_what_another_program_stores_are_a_race(kernel, message, interp_guard):
    with interp_guard(), pytest.raises(InterpreterError, match=message):
        kernel[(4,)](torch.zeros(5))


def test_races_can_be_allowed(interp_guard):
    x = torch.arange(5.0)
    with interp_guard(races=False):
        shift_left[(4,)](x)
    assert x.tolist() == [1, 2, 3, 4, 4]


def test_atomics_are_no_race(interp_guard):
    x = torch.zeros(1)
    with interp_guard():
        count[(4,)](x)
    assert x.item() == 4


def test_bfloat16_arithmetic_is_refused(interp_guard):
    x = torch.ones(8, dtype=torch.bfloat16)
    with interp_guard(), pytest.raises(InterpreterError, match=r"bfloat16 arithmetic \(add\)"):
        double[(1,)](x, BLOCK=8)


def test_bfloat16_reduction_is_refused(interp_guard):
    x, y = torch.ones(8, dtype=torch.bfloat16), torch.zeros(1)
    with interp_guard(), pytest.raises(InterpreterError, match="bfloat16 arithmetic"):
        total[(1,)](x, y, BLOCK=8)


def test_casts_to_bfloat16_round_to_nearest_even(interp_guard):
    upper_halves = torch.arange(1364) * 47  # of both parities, all exponents and signs
    ties = (upper_halves << 16) + 0x8000
    near = torch.cat([ties - 1, ties, ties + 1]).to(torch.int32).view(torch.float32)
    x = torch.cat([near, torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])])
    y = torch.zeros(4096, dtype=torch.bfloat16)
    with interp_guard():
        narrow[(1,)](x, y, BLOCK=4096)
    torch.testing.assert_close(y, x.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


def test_dot_takes_bfloat16(interp_guard):
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, 16, generator=draw).to(torch.bfloat16)
    c = torch.zeros(16, 16)
    with interp_guard():
        matmul[(1,)](a, b, c, SIZE=16)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


def test_interpreter_is_left_as_it_was(interp_guard):
    x, y = torch.zeros(10), torch.zeros(16)
    with interp_guard(), pytest.raises(InterpreterError):
        copy[(1,)](x, y, 10, BLOCK=16, MASKED=False)
    stored = torch.zeros(8, dtype=torch.int32)
    store_everything[(2,)](stored, BLOCK=8)
    assert stored.tolist() == [1] * 8
