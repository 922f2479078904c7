"""silu_mul in C++ against its definition in float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.native.silu_mul import bind
from qwell.kernels.reference.silu_mul import silu_mul as reference

NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}

each_isa = pytest.mark.parametrize("isa", NATIVE)


def _random(rows, width, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(rows, 2 * width, generator=generator)


@st.composite
def arguments(draw):
    """gate_up of any shape, and of sizes for which e^-gate is anything from 0 to inf."""
    rows, width = draw(st.integers(0, 6)), draw(st.integers(1, 300))
    return _random(rows, width, draw(st.integers(0, 2**32)), 10.0 ** draw(st.integers(-4, 3)))


@each_isa
@given(arguments())
def test_equals_definition(isa, nan_empty, assert_within, gate_up):
    gate, up = gate_up.double().chunk(2, dim=1)
    expected = gate * torch.sigmoid(gate) * up
    with nan_empty():
        y = NATIVE[isa](gate_up)
    # e^-gate is off by an ulp or two (where nothing fuses), and four operations follow. Below the
    # normal numbers, and past where e^-gate is infinite, errors are absolute.
    smallest = torch.finfo(torch.float32).smallest_normal
    tolerance = 6 * torch.finfo(torch.float32).eps * expected.abs()
    assert_within(y, expected, tolerance + 100 * smallest * (1 + up.abs()))


@each_isa
def test_special_values_are_those_of_the_reference(isa, assert_within):
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 88.0, -100.0])
    gate, up = torch.cartesian_prod(special, special).T
    gate_up = torch.cat([gate, up])[None]
    assert_within(NATIVE[isa](gate_up), reference(gate_up), 1e-6)


@each_isa
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 7, 48, 3072, 4096, 4097, 18944])
def test_bits_depend_on_the_element_alone(isa, threads, width):
    gate_up = _random(5, width)
    y = bind(Runner(threads, isa))(gate_up)
    for row in range(5):
        assert torch.equal(NATIVE[isa](gate_up[row : row + 1].clone()), y[row : row + 1])
    column = width // 2
    alone = gate_up[:, [column, width + column]].contiguous()
    assert torch.equal(NATIVE[isa](alone), y[:, column : column + 1])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_replay_has_the_bits_of_the_op_run_now(threads):
    runner = Runner(threads)
    gate_up, rows = _random(9, 5000), torch.zeros(4, dtype=torch.int32)
    replay = runner.record(lambda: bind(runner)(gate_up), gate_up, rows)
    for tokens in (9, 1, 4):
        gate_up.normal_()
        replay(tokens, 0)
        assert torch.equal(replay.result[:tokens], bind(Runner(1))(gate_up[:tokens]))


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(8), r"gate_up must have shape \[T, 2 I >= 2\], got \(8,\)"),
        (torch.zeros(2, 7), r"gate_up must have shape \[T, 2 I >= 2\], got \(2, 7\)"),
        (torch.zeros(2, 0), r"gate_up must have shape \[T, 2 I >= 2\], got \(2, 0\)"),
        (torch.zeros(2, 8).bfloat16(), "gate_up must be torch.float32, got torch.bfloat16"),
        (torch.zeros(8, 2).T, "gate_up must be contiguous"),
        (torch.zeros(2, 8).to("meta"), "gate_up must be on the CPU, got meta"),
    ],
)
def test_refuses_what_it_would_misread(gate_up, message):
    with pytest.raises(KernelError, match=f"silu_mul: {message}"):
        bind(Runner(1))(gate_up)
