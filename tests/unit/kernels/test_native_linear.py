"""linear in C++ against the exact product, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.int_groups import GROUP, quantize_activations
from qwell.kernels.native.linear import bind
from qwell.kernels.native.packed import pack
from qwell.kernels.native.runner import ISAS, Runner

FORMATS = ("f32", "bf16", "f16", "int8", "int4")
GROUPED = ("int8", "int4")
NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}
EPS = torch.finfo(torch.float32).eps

each_isa = pytest.mark.parametrize("isa", NATIVE)
each_format = pytest.mark.parametrize("weights", FORMATS)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _columns(weights, columns):
    return -(-columns // GROUP) * GROUP if weights in GROUPED else columns


def _read(x, weights, isa):
    """Activations as the product of a format reads them."""
    if weights in GROUPED:
        return quantize_activations(x)
    if weights == "bf16" and isa == "avx512_bf16":
        return x.bfloat16().float()
    return x


shapes = st.tuples(st.integers(1, 40), st.integers(1, 200), st.integers(1, 100))


@each_isa
@each_format
@example((1, 64, 64), 0)
@example((17, 33, 31), 0)
@example((512, 96, 16), 0)
@given(shapes, st.integers(0, 2**32))
def test_equals_the_exact_product(isa, weights, nan_empty, assert_within, shape, seed):
    tokens, columns, outputs = shape
    columns = _columns(weights, columns)
    weight = pack(_random(outputs, columns, seed=seed), weights)
    x, bias = _random(tokens, columns, seed=seed + 1), _random(outputs, seed=seed + 2)
    exact, values = _read(x, weights, isa).double(), weight.dequantize().double()
    with nan_empty():
        y = NATIVE[isa](x, weight, bias)
    # One rounding a link of the chain at most three: the product of scales, the sum in pairs.
    size = exact.abs() @ values.abs().T + bias.double().abs()
    assert_within(y, exact @ values.T + bias.double(), 3 * (columns + 1) * EPS / 2 * size)


@each_isa
@each_format
@pytest.mark.parametrize("tokens", [2, 5, 12, 13, 31])
def test_bits_of_a_row_depend_on_that_row_alone(isa, weights, tokens):
    weight = pack(_random(70, 256), weights)
    x = _random(tokens, 256, seed=1)
    alone = torch.cat([NATIVE[isa](row[None], weight) for row in x])
    assert torch.equal(NATIVE[isa](x, weight), alone)
    # The inverse: another row's bits do change with that row.
    x[0] += 1
    assert not torch.equal(NATIVE[isa](x, weight)[0], alone[0])


@each_isa
@each_format
def test_bits_do_not_depend_on_threads(isa, weights):
    weight = pack(_random(1000, 512), weights)
    x = _random(19, 512, seed=1)
    one, *others = (bind(Runner(threads, isa))(x, weight) for threads in (1, 2, 5))
    assert all(torch.equal(one, other) for other in others)


@each_isa
@pytest.mark.parametrize("weights", GROUPED)
def test_special_groups_of_activations(isa, weights, assert_within):
    weight = pack(_random(16, 2 * GROUP), weights)
    x = _random(5, 2 * GROUP, seed=1)
    x[0, 3] = torch.nan
    x[1, 40] = -torch.inf
    x[2, :GROUP] = 0.0
    x[3] *= 1e-35
    x[4] *= 1e30
    y = NATIVE[isa](x, weight)
    assert y[:2].isnan().all()
    exact = quantize_activations(x)[2:].double() @ weight.dequantize().double().T
    assert_within(y[2:], exact, 1e-4 * exact.abs().amax(dim=1, keepdim=True))


@each_format
def test_no_rows_are_no_work(weights):
    weight = pack(_random(16, 32), weights)
    assert next(iter(NATIVE.values()))(torch.empty(0, 32), weight).shape == (0, 16)


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(2, 31), None, r"x must have shape \[T, 32\]"),
        (torch.zeros(2, 32).bfloat16(), None, "x must be torch.float32"),
        (torch.zeros(32, 2).T, None, "contiguous"),
        (torch.zeros(2, 32), torch.zeros(15), "bias must have shape"),
    ],
)
def test_refuses_what_it_cannot_read(x, bias, message):
    linear = next(iter(NATIVE.values()))
    with pytest.raises(KernelError, match=message):
        linear(x, pack(torch.zeros(16, 32), "bf16"), bias)


def test_refuses_plain_weights():
    with pytest.raises(KernelError, match="packed"):
        next(iter(NATIVE.values()))(torch.zeros(2, 32), torch.zeros(16, 32))
