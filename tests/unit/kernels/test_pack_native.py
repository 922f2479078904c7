"""The native packing on every instruction set: the bits of the torch one."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.native.pack import Packer
from qwell.kernels.native.packed import Format, pack
from qwell.kernels.native.runner import ISAS

FORMATS = get_args(Format)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PACKERS = {isa: Packer(threads=2, isa=isa) for isa in ISAS}

each_isa = pytest.mark.parametrize("isa", PACKERS)
each_format = pytest.mark.parametrize("format_name", FORMATS)
examples = settings(max_examples=40)


@st.composite
def parts(draw, columns: st.SearchStrategy[int]) -> list[Tensor]:
    """One to three matrices of any rows and dtypes: sizes far apart, outliers, ties, zeros."""
    width = draw(columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    drawn = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(1, 40))
        weight = torch.randn(rows, width, generator=generator)
        # Down to scales that float16 holds with few bits, or rounds to zero.
        weight *= 10 ** (9 * torch.rand(rows, 1, generator=generator) - 8)
        weight[torch.rand(weight.shape, generator=generator) < 0.02] *= 50
        if draw(st.booleans()):
            weight = (weight * 4).round() / 4
        weight[:: draw(st.integers(1, 9))] = draw(st.sampled_from([0.0, -0.0, 0.37, -2.0]))
        drawn.append(weight.to(draw(st.sampled_from(DTYPES))))
    return drawn


def check_bits(isa: str, weights: list[Tensor], format_name: Format) -> None:
    expected = pack(torch.cat([weight.float() for weight in weights]), format_name)
    packed = PACKERS[isa].pack(weights, format_name)
    assert packed.shape == expected.shape
    assert torch.equal(packed.data, expected.data)


@each_isa
@each_format
@examples
@given(parts(columns=st.integers(1, 9).map(lambda groups: 32 * groups)))
def test_bits_are_those_of_the_torch_packing(isa, format_name, parts):
    check_bits(isa, parts, format_name)


@each_isa
@pytest.mark.parametrize("format_name", ["f32", "bf16", "f16"])
@examples
@given(parts(columns=st.integers(1, 67)))
def test_formats_without_groups_take_any_columns(isa, format_name, parts):
    check_bits(isa, parts, format_name)


@each_isa
@pytest.mark.parametrize("format_name", ["f32", "bf16", "f16"])
def test_every_half_precision_number_is_kept(isa, format_name):
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(256, 256)
    for dtype in (torch.bfloat16, torch.float16):
        weight = patterns.view(dtype)
        if format_name == "f16" and dtype == torch.bfloat16:
            weight = weight.clone()
            weight[~(weight.abs() < 65520)] = 0
        kept = PACKERS[isa].pack([weight], format_name).dequantize()
        expected = weight.to(
            {"f32": torch.float32, "bf16": torch.bfloat16}.get(format_name, torch.float16)
        ).float()
        assert torch.allclose(kept, expected, rtol=0, atol=0, equal_nan=True)


@each_isa
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_the_number_of_threads(isa, threads):
    weight = torch.randn(200, 96)
    packed = Packer(threads, isa).pack([weight], "int4")
    assert torch.equal(packed.data, PACKERS[isa].pack([weight], "int4").data)


@each_isa
@pytest.mark.parametrize("format_name", ["f16", "int8", "int4"])
@pytest.mark.parametrize("value", [1e30, -1e7, torch.nan, torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (17, 63), (32, 31)])
def test_refuses_weights_that_do_not_fit(isa, format_name, value, place):
    weight = torch.randn(33, 64)
    weight[place] = value
    with pytest.raises(KernelError, match="not finite, or too large for float16"):
        PACKERS[isa].pack([torch.zeros(3, 64), weight], format_name)


def test_refuses_parts_that_are_no_matrix():
    packer = PACKERS["portable"]
    weight = torch.zeros(4, 64)
    with pytest.raises(KernelError, match=r"float \[N, 64\], got torch.int32"):
        packer.pack([weight, weight.int()], "int8")
    with pytest.raises(KernelError, match=r"float \[N, 64\], got .* \(4, 32\)"):
        packer.pack([weight, weight[:, :32]], "int8")
    with pytest.raises(KernelError, match="contiguous"):
        packer.pack([torch.zeros(64, 64).t()], "int8")
    with pytest.raises(KernelError, match="groups of 32, got 65"):
        packer.pack([torch.zeros(4, 65)], "int8")
