"""Packed weights: the layout, and the values that it holds."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.native.packed import Format, PackedWeight, pack, packed_bytes
from qwell.kernels.quantize import quantize_int4, quantize_int8
from qwell.kernels.reference.embedding import embedding
from qwell.kernels.reference.linear import linear

FORMATS = get_args(Format)
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
QUANTIZERS = {"int8": quantize_int8, "int4": quantize_int4}

each_format = pytest.mark.parametrize("format_name", FORMATS)
each_int = pytest.mark.parametrize("format_name", QUANTIZERS)
examples = settings(max_examples=40)


def values_of(format_name: str, weight: Tensor) -> Tensor:
    """What a format is to make of a weight, from definitions that know nothing of its layout."""
    if format_name in QUANTIZERS:
        return QUANTIZERS[format_name](weight).dequantize()
    return weight.to(FLOATS[format_name]).float()


whole_groups = st.integers(1, 9).map(lambda groups: 32 * groups)


@st.composite
def weights(draw, columns=whole_groups) -> Tensor:
    """Weights of very different sizes, with outliers, zeros and constant rows."""
    rows, width = draw(st.integers(1, 70)), draw(columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(rows, width, generator=generator)
    weight *= 10 ** (4 * torch.rand(rows, 1, generator=generator) - 3)
    weight[torch.rand(weight.shape, generator=generator) < 0.01] *= 50
    weight[:: draw(st.integers(1, 9))] = draw(st.sampled_from([0.0, -0.0, 0.37, -2.0]))
    return weight.to(draw(st.sampled_from(list(FLOATS.values()))))


@each_format
@examples
@given(weights())
def test_dequantize_gives_the_values_of_the_format(format_name, weight):
    packed = pack(weight, format_name)
    assert packed.shape == tuple(weight.shape)
    assert packed.data.nbytes == packed_bytes(format_name, *packed.shape)
    assert torch.equal(packed.dequantize(), values_of(format_name, weight))


@pytest.mark.parametrize("format_name", FLOATS)
@examples
@given(weights(columns=st.integers(1, 67)))
def test_formats_without_groups_take_any_columns(format_name, weight):
    assert torch.equal(pack(weight, format_name).dequantize(), values_of(format_name, weight))


@each_format
def test_rows_past_the_last_are_zero(format_name):
    packed = pack(torch.randn(5, 64), format_name)
    whole = PackedWeight(format_name, packed.data, 16, 64)
    assert (whole.dequantize()[5:] == 0).all()


def test_places_in_float_formats():
    weight = torch.arange(18 * 5.0).view(18, 5)
    for format_name, dtype in (("f32", torch.float32), ("f16", torch.float16)):
        data = pack(weight, format_name).data.view(dtype).view(2, 5, 16)
        assert data[1, 3, 1] == weight[17, 3]
        assert data[0, 4, 15] == weight[15, 4]
    data = pack(weight, "bf16").data.view(torch.bfloat16).view(2, 3, 16, 2)
    assert data[1, 1, 1].tolist() == weight[17, 2:4].tolist()
    assert data[0, 2, 15].tolist() == [weight[15, 4], 0]


def test_places_in_int8():
    weight = torch.zeros(20, 96)
    weight[17, 32 + 11] = -127 * 0.5
    group = pack(weight, "int8").data.view(2, 3, 544)[1, 1]
    assert group[:32].view(torch.float16)[1] == 0.5
    lines = group[32:].view(8, 16, 4)
    assert lines[2, 1, 3] == 1
    assert (lines == 128).sum() == 511


def test_places_in_int4():
    weight = torch.zeros(20, 96)
    weight[17, 32 + 6] = -8 * 0.5
    weight[17, 32 + 16 + 9] = 3 * 0.5
    group = pack(weight, "int4").data.view(2, 3, 288)[1, 1]
    assert group[:32].view(torch.float16)[1] == 0.5
    lines = group[32:].view(4, 16, 4)
    assert lines[1, 1, 2] == 0 | 8 << 4
    assert lines[2, 1, 1] == 8 | 11 << 4
    assert (lines == 0x88).sum() == 254


@each_int
def test_integer_formats_refuse_columns_that_are_no_groups(format_name):
    with pytest.raises(KernelError, match="groups of 32, got 65"):
        pack(torch.zeros(2, 65), format_name)


@pytest.mark.parametrize("format_name", ["f16", "int8", "int4"])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf])
def test_refuses_weights_that_do_not_fit(format_name, value):
    with pytest.raises(KernelError, match="not finite, or too large"):
        pack(torch.full((2, 64), value), format_name)


@pytest.mark.parametrize("format_name", FLOATS)
def test_what_is_stored_as_it_is_may_be_anything(format_name):
    weight = torch.tensor([[torch.inf, torch.nan, -0.0]], dtype=FLOATS[format_name])
    dequantized = pack(weight, format_name).dequantize()
    assert torch.allclose(dequantized, weight.float(), rtol=0, atol=0, equal_nan=True)


def test_refuses_data_of_another_size():
    data = pack(torch.zeros(16, 64), "int8").data
    with pytest.raises(KernelError, match=r"uint8 of shape \(1088,\), got .* \(1087,\)"):
        PackedWeight("int8", data[:-1], 16, 64)


@each_format
def test_reference_embedding_takes_a_packed_table(format_name):
    table = torch.randn(37, 64)
    ids = torch.tensor([36, 0, 15, 16, 0], dtype=torch.int32)
    rows = embedding(ids, pack(table, format_name))
    assert torch.equal(rows, values_of(format_name, table)[ids.long()])


@each_format
def test_reference_linear_takes_a_packed_weight(format_name):
    x, weight, bias = torch.randn(3, 64), torch.randn(40, 64), torch.randn(40)
    expected = linear(x, values_of(format_name, weight), bias)
    assert torch.equal(linear(x, pack(weight, format_name), bias), expected)
