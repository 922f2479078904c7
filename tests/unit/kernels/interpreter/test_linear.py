"""The Triton linear against exact sums, and one token's bits against those in a batch."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.quantize import quantize_fp8, quantize_int4, quantize_int8
from qwell.kernels.triton import linear as module
from qwell.kernels.triton.linear import linear
from qwell.kernels.weights import IntWeight, pack

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = ["dense", "int8", "int4", "gptq8", "awq4", "fp8"]


def make_weight(name, rows, columns, dtype, draw):
    """A weight of the named format; gptq8 and awq4 have zero points and groups as large as fit."""
    values = torch.randn(rows, columns, generator=draw)
    if name == "dense":
        return values.to(dtype)
    if name in ("int8", "int4", "fp8"):
        return {"int8": quantize_int8, "int4": quantize_int4, "fp8": quantize_fp8}[name](values)
    bits = int(name[-1])
    group = 128 if columns % 128 == 0 else 32
    codes = torch.randint(2**bits, (rows, columns), generator=draw, dtype=torch.uint8)
    shape = (columns // group, rows)
    zeros = torch.randint(2**bits, shape, generator=draw, dtype=torch.uint8)
    scales = (torch.rand(shape, generator=draw) * 2.0 ** (1 - bits)).half()
    return IntWeight(pack(codes, bits), scales, zeros, bits, columns)


def exact(weight):
    values = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
    return values.double()


# 1184 columns are three parts, the last one of 160; 130 rows are three tiles.
@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "biased"),
    [(70, 1184, 5, True), (130, 256, 17, False), (3, 96, 1, True)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_equals_the_exact_sum(
    name, dtype, rows, columns, tokens, biased, interp_guard, nan_empty, assert_within
):
    draw = torch.Generator().manual_seed(columns)
    weight = make_weight(name, rows, columns, dtype, draw)
    x = torch.randn(tokens, columns, generator=draw).to(dtype)
    bias = torch.randn(rows, generator=draw).to(dtype) if biased else None

    with interp_guard(), nan_empty():
        y = linear(x, weight, bias)

    extra = torch.zeros(rows).double() if bias is None else bias.double()
    expected = x.double() @ exact(weight).t() + extra
    # A rounding for each product, sum, scale and part in fp32, then one to the dtype.
    sizes = x.double().abs() @ exact(weight).abs().t() + extra.abs()
    error = (columns + 8) * 2**-24 * sizes
    assert_within(y, expected, error + torch.finfo(dtype).eps / 2 * (expected.abs() + error))
    assert y.dtype == dtype


@pytest.mark.parametrize("name", ["dense", "fp8"])
def test_columns_of_any_number(name, interp_guard, nan_empty, assert_within):
    draw = torch.Generator().manual_seed(0)
    weight = make_weight(name, 3, 77, torch.bfloat16, draw)
    x = torch.randn(2, 77, generator=draw).bfloat16()
    with interp_guard(), nan_empty():
        y = linear(x, weight)
    expected = x.double() @ exact(weight).t()
    assert_within(y, expected, 2**-8 * expected.abs() + 1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_have_the_same_bits_alone_and_in_batches(name, interp_guard, nan_empty):
    draw = torch.Generator().manual_seed(0)
    weight = make_weight(name, 66, 1184, torch.bfloat16, draw)
    bias = torch.randn(66, generator=draw).bfloat16()
    x = torch.randn(260, 1184, generator=draw).bfloat16()
    with interp_guard(), nan_empty():
        all_tokens = linear(x, weight, bias)
        for tokens in (slice(7, 8), slice(0, 40)):
            assert torch.equal(linear(x[tokens], weight, bias), all_tokens[tokens])


def test_another_order_of_summing_has_other_bits(interp_guard, monkeypatch):
    """What the test above sees: parts of another width change fp32 sums."""
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(66, 1184, generator=draw), torch.randn(3, 1184, generator=draw)
    with interp_guard():
        y = linear(x, weight)
        monkeypatch.setattr(module, "part_width", lambda _n, _k: 768)
        assert not torch.equal(linear(x, weight), y)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_nan_and_infinity_stay_with_their_token(name, interp_guard):
    draw = torch.Generator().manual_seed(0)
    weight = make_weight(name, 40, 160, torch.bfloat16, draw)
    x = torch.randn(3, 160, generator=draw).bfloat16()
    with interp_guard():
        clean = linear(x, weight)
        x[0, 150], x[2, 3] = torch.nan, torch.inf
        y = linear(x, weight)
    assert torch.equal(y[1], clean[1])
    assert not y[0].isfinite().any()
    assert not y[2].isfinite().any()


def test_every_e4m3_number(interp_guard, assert_within):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = codes[codes.isfinite()]
    weight = quantize_fp8(values[:, None] * torch.eye(1, 8))
    with interp_guard():
        y = linear(torch.eye(1, 8), weight)
    assert_within(y[0], values, 0.0)


def test_no_tokens(interp_guard):
    with interp_guard():
        assert linear(torch.zeros(0, 64), torch.ones(8, 64)).shape == (0, 8)
