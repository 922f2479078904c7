"""Weight formats and what quantisation makes of weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.quantize import quantize_fp8, quantize_int4, quantize_int8
from qwell.kernels.reference.linear import linear
from qwell.kernels.weights import Fp8Weight, IntWeight, pack, unpack

QUANTIZERS = [quantize_int8, quantize_int4, quantize_fp8]
each_quantizer = pytest.mark.parametrize("quantize", QUANTIZERS, ids=lambda f: f.__name__)
seeds = st.integers(0, 2**32)
examples = settings(max_examples=50)


@st.composite
def weights(draw) -> torch.Tensor:
    """Normal weights of very different sizes, with outliers, zeros and constant rows."""
    rows, groups = draw(st.integers(1, 130)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(seeds))
    weight = torch.randn(rows, 32 * groups, generator=generator)
    weight *= 10 ** (4 * torch.rand(rows, 1, generator=generator) - 3)
    weight[torch.rand(weight.shape, generator=generator) < 0.01] *= 50
    weight[:: draw(st.integers(1, 9))] = draw(st.sampled_from([0.0, 0.37, -2.0]))
    return weight


@examples
@given(st.sampled_from([4, 8]), st.integers(1, 40), st.integers(1, 300), seeds)
def test_unpack_inverts_pack(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.shape == (-(-columns // 128), rows, 32)
    assert words.element_size() == bits // 2
    assert torch.equal(unpack(words, bits, columns), codes)


@pytest.mark.parametrize("bits", [4, 8])
def test_place_of_a_code(bits):
    for column in (0, 31, 32, 127, 128, 200):
        codes = torch.zeros(3, 256, dtype=torch.uint8)
        codes[2, column] = 1
        tile, place, word = column // 128, column % 128 // 32, column % 32
        expected = torch.zeros(2, 3, 32)
        expected[tile, 2, word] = 2.0 ** (bits * place)
        assert torch.equal(pack(codes, bits).float(), expected)


@examples
@given(weights())
def test_int8_is_within_half_a_step(weight):
    # Rounding the scale to float16 moves the clipped end by up to 127 * 2^-11 of a step; scales
    # below 2^-14 have fewer bits.
    largest = weight.unflatten(1, (-1, 32)).abs().amax(-1).repeat_interleave(32, 1)
    error = (quantize_int8(weight).dequantize() - weight).abs()
    assert (error <= largest / 127 * (0.5 + 127 * 2**-11) * 1.001 + 127 * 2**-25).all()


@examples
@given(weights())
def test_int4_is_no_worse_than_rounding_to_nearest(weight):
    groups = weight.unflatten(1, (-1, 32))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scales = (largest / -8).half().float()
    rounded = (groups / torch.where(scales == 0, 1.0, scales)).round().clamp(-8, 7) * scales
    error = (quantize_int4(weight).dequantize().view_as(groups) - groups).square().sum(2)
    assert (error <= (rounded - groups).square().sum(2)).all()


@examples
@given(weights())
def test_fp8_is_within_half_an_ulp(weight):
    result = quantize_fp8(weight)
    scales = result.scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    scales = scales[: weight.shape[0], : weight.shape[1]]
    # 3 mantissa bits; the smallest step of e4m3 is 2^-9.
    bound = torch.maximum(weight.abs() * 2**-4, scales * 2**-10)
    assert ((result.dequantize() - weight).abs() <= bound * 1.001).all()


@pytest.mark.parametrize(
    ("quantize", "expected"),
    [(quantize_int8, 0.0054), (quantize_int4, 0.083), (quantize_fp8, 0.0265)],
    ids=["int8", "int4", "fp8"],
)
def test_relative_error_of_normal_weights(quantize, expected):
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    error = (quantize(weight).dequantize() - weight).norm() / weight.norm()
    assert error.item() == pytest.approx(expected, rel=0.02)


@each_quantizer
@examples
@given(weights())
def test_quantising_again_changes_nothing(quantize, weight):
    once = quantize(weight).dequantize()
    assert torch.equal(quantize(once).dequantize(), once)


@each_quantizer
def test_zeros_stay_zeros(quantize):
    assert torch.equal(quantize(torch.zeros(3, 64)).dequantize(), torch.zeros(3, 64))


@each_quantizer
def test_an_outlier_costs_its_group_alone(quantize):
    weight = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
    spoilt = weight.clone()
    spoilt[0, 3] = 1000
    before, after = quantize(weight).dequantize(), quantize(spoilt).dequantize()
    assert torch.equal(before[:, 128:], after[:, 128:])
    assert after[0, 3] == pytest.approx(1000, rel=2**-8)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_refuses_columns_that_are_no_groups(quantize):
    with pytest.raises(KernelError, match="columns in groups of 32, got 65"):
        quantize(torch.zeros(2, 65))


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("value", [1e30, torch.nan, torch.inf])
def test_refuses_weights_that_have_no_scale(quantize, value):
    with pytest.raises(KernelError, match="not finite, or too large"):
        quantize(torch.full((2, 64), value))


def test_int_weight_of_hand_made_groups():
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256)
    weight = IntWeight(
        pack(codes, 8),
        scales=torch.tensor([[0.5], [2.0]], dtype=torch.float16),
        zeros=torch.tensor([[0], [200]], dtype=torch.uint8),
        bits=8,
        columns=256,
    )
    assert weight.shape == (1, 256)
    assert weight.group == 128
    expected = [0.5 * k for k in range(128)] + [2.0 * (k - 200) for k in range(128, 256)]
    assert weight.dequantize()[0].tolist() == expected


def test_fp8_weight_of_hand_made_blocks():
    codes = torch.ones(130, 129).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    values = Fp8Weight(pack(codes, 8), scales, 129).dequantize()
    assert values.shape == (130, 129)
    assert (values[:128, :128] == 1).all()
    assert (values[:128, 128:] == 2).all()
    assert values[128:].unique(dim=0).tolist() == [[3.0] * 128 + [4.0]]


def test_refuses_parts_that_do_not_fit():
    weight = quantize_int8(torch.zeros(4, 128))
    with pytest.raises(KernelError, match=r"words must be contiguous torch.int16 of shape"):
        IntWeight(weight.words, weight.scales, None, 4, 128)
    with pytest.raises(KernelError, match="bits must be 4 or 8, got 3"):
        IntWeight(weight.words, weight.scales, None, 3, 128)
    with pytest.raises(KernelError, match="100 columns are not 4 groups of a multiple of 32"):
        IntWeight(weight.words, weight.scales, None, 8, 100)
    with pytest.raises(KernelError, match=r"scales must be contiguous torch.float32 of shape"):
        Fp8Weight(weight.words, torch.ones(4, 1), 128)


@each_quantizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reference_linear_uses_exact_weights_and_rounds_once(quantize, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = quantize(torch.randn(40, 96, generator=generator))
    x = torch.randn(5, 96, generator=generator).to(dtype)
    bias = torch.randn(40, generator=generator).to(dtype)
    exact = x.double() @ weight.dequantize().double().t() + bias.double()
    y = linear(x, weight, bias)
    assert y.dtype == dtype
    size = x.double().abs() @ weight.dequantize().double().abs().t() + bias.double().abs()
    tolerance = torch.finfo(dtype).eps / 2 * exact.abs() + 97 * 2**-24 * size
    assert ((y.double() - exact).abs() <= tolerance).all()
