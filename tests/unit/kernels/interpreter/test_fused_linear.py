"""The fused linear kernels against the formulas of what they fuse in float64, interpreted."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwell.kernels.fused_ops import Splits
from qwell.kernels.reference.linear import linear
from qwell.kernels.reference.rms_norm import rms_norm
from qwell.kernels.reference.silu_mul import silu_mul
from qwell.kernels.triton import linear_add as linear_add_module
from qwell.kernels.triton import norm_linear as norm_linear_module
from qwell.kernels.triton import norm_linear_silu_mul as norm_linear_silu_mul_module
from qwell.kernels.triton.configs.attention_decode import SPLIT
from qwell.kernels.triton.configs.gemv import ROWS
from qwell.kernels.triton.linear_add import linear_add
from qwell.kernels.triton.merge_linear_add import merge_linear_add
from qwell.kernels.triton.norm_linear import norm_linear
from qwell.kernels.triton.norm_linear_silu_mul import norm_linear_silu_mul

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6


def _with_settings(module, chosen):
    return mock.patch.object(module, "settings", return_value=chosen)


# Widths below, at and above a tile, with a last tile of any size; rows that fill no program. The
# settings of wide weights are tried on narrow ones: programs take their time here.
steps = {
    "tokens": st.integers(1, 4),
    "k": st.one_of(st.integers(1, 96), st.sampled_from([1000, 1024, 2048, 2056, 3072])),
    "n": st.integers(1, 12),
    "dtype": st.sampled_from(DTYPES),
    "chosen": st.sampled_from(ROWS["default"]),
}
few = settings(max_examples=60)


def _draw(tokens, n, k, dtype):
    """x [tokens, K] of very different sizes, a weight [N, K] and a norm [K]."""
    draw = torch.Generator().manual_seed(n * k + tokens)
    x = torch.randn(tokens, k, generator=draw) * 10.0 ** torch.arange(-1, tokens - 1)[:, None]
    weight = torch.randn(n, k, generator=draw) * k**-0.5
    norm = 1 + torch.randn(k, generator=draw) / 4
    return x.to(dtype), weight.to(dtype), norm.to(dtype), draw


def _normed(x, norm):
    x = x.double()
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS) * norm.double()


def _products(x, weight, extra=0.0):
    """x times the weight, plus `extra`, and what fp32 may be off by.

    Every product has a rounding each for the product, the norm's product, its sum and the sums
    that it is part of, of which there are less than K; twice that covers the norm's own mean.
    """
    weight = weight.double()
    sizes = x.abs() @ weight.abs().t() + torch.as_tensor(extra).abs()
    return x @ weight.t() + extra, (2 * x.shape[1] + 16) * 2**-24 * sizes


def _rounded(expected, error, dtype):
    """The error of fp32, and a rounding to the dtype (to a subnormal one, if small)."""
    info = torch.finfo(dtype)
    return error + info.eps / 2 * (expected.abs() + error) + info.smallest_normal * info.eps


@given(**steps, biased=st.booleans())
@few
def test_norm_linear(interp_guard, nan_empty, assert_within, tokens, k, n, dtype, chosen, biased):
    x, weight, norm, draw = _draw(tokens, n, k, dtype)
    bias = torch.randn(n, generator=draw).to(dtype) if biased else None
    with interp_guard(), nan_empty(), _with_settings(norm_linear_module, chosen):
        y = norm_linear(x, norm, EPS, weight, bias)
    extra = torch.zeros(n).double() if bias is None else bias.double()
    expected, error = _products(_normed(x, norm), weight, extra)
    assert_within(y, expected, _rounded(expected, error, dtype))
    assert y.dtype == dtype


@given(**steps)
@few
def test_norm_linear_silu_mul(interp_guard, nan_empty, assert_within, tokens, k, n, dtype, chosen):
    x, weight, norm, _ = _draw(tokens, 2 * n, k, dtype)
    with interp_guard(), nan_empty(), _with_settings(norm_linear_silu_mul_module, chosen):
        y = norm_linear_silu_mul(x, norm, EPS, weight)
    (gate, up), (gate_error, up_error) = (
        part.chunk(2, dim=1) for part in _products(_normed(x, norm), weight)
    )
    expected = gate * torch.sigmoid(gate) * up
    # silu is at most as steep as 1.1, and 8 roundings cover its own.
    error = 1.1 * gate_error * (up.abs() + up_error) + gate.abs() * up_error
    error += 8 * 2**-24 * expected.abs()
    assert_within(y, expected, _rounded(expected, error, dtype))
    assert y.dtype == dtype


@given(**steps)
@few
def test_linear_add(interp_guard, nan_empty, assert_within, tokens, k, n, dtype, chosen):
    x, weight, _, draw = _draw(tokens, n, k, dtype)
    residual = torch.randn(tokens, n, generator=draw).to(dtype)
    before = residual.clone()
    with interp_guard(), nan_empty(), _with_settings(linear_add_module, chosen):
        y = linear_add(x, weight, residual)
    expected, error = _products(x.double(), weight, residual.double())
    assert_within(y, expected, _rounded(expected, error, dtype))
    assert y.dtype == dtype
    assert torch.equal(residual, before)


def _splits(lengths, heads, head_dim, window, slack=0):
    """Splits as attention leaves them, the unwritten ones NaN, and their merge in float64."""
    draw = torch.Generator().manual_seed(sum(lengths) + heads)
    count = max(-(-max(*lengths, 1) // SPLIT), 1) + slack
    values = torch.full((len(lengths), count, heads, head_dim), torch.nan)
    stats = torch.full((len(lengths), count, heads, 2), torch.nan)
    merged = torch.zeros(len(lengths), heads, head_dim).double()
    for s, length in enumerate(lengths):
        first = 0 if window is None else max(length - window, 0) // SPLIT
        own = slice(first, -(-length // SPLIT))
        shape = values[s, own].shape
        if not shape[0]:
            continue
        values[s, own] = torch.randn(shape, generator=draw)
        stats[s, own, :, 0] = 20 * torch.randn(shape[:2], generator=draw)
        stats[s, own, :, 1] = 1 + torch.rand(shape[:2], generator=draw)
        greatest, sums = stats[s, own].double().unbind(-1)
        weights = torch.exp2(greatest - greatest.amax(dim=0))
        merged[s] = (weights[..., None] * values[s, own].double()).sum(dim=0)
        merged[s] /= (weights * sums).sum(dim=0)[:, None]
    lens = torch.tensor(lengths, dtype=torch.int32)
    return Splits(values, stats, lens, window), merged.flatten(1)


LENGTHS = [0, 1, SPLIT - 1, SPLIT, SPLIT + 1, 3 * SPLIT + 7, 9 * SPLIT + 1]


@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=4),
    heads=st.sampled_from([1, 2, 5, 16, 20]),
    head_dim=st.sampled_from([16, 24, 80, 128]),
    n=st.integers(1, 20),
    window=st.sampled_from([None, 1, SPLIT, SPLIT + 9]),
    slack=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
)
@few
def test_merge_linear_add(
    interp_guard, nan_empty, assert_within, lengths, heads, head_dim, n, window, slack, dtype
):
    splits, merged = _splits(lengths, heads, head_dim, window, slack)
    _, weight, _, draw = _draw(1, n, heads * head_dim, dtype)
    residual = torch.randn(len(lengths), n, generator=draw).to(dtype)
    before = residual.clone()
    with interp_guard(), nan_empty():
        y = merge_linear_add(splits, weight, residual)
    expected, error = _products(merged, weight, residual.double())
    # A value is a weighted sum over its splits, whose weights are off by roundings of scores.
    largest = splits.values.nan_to_num().abs().max()
    error += 2**-24 * 200 * largest * weight.double().abs().sum(dim=1)
    assert_within(y, expected, _rounded(expected, error, dtype))
    assert y.dtype == dtype
    assert torch.equal(residual, before)
    for s in [s for s, length in enumerate(lengths) if length == 0]:
        assert torch.equal(y[s], residual[s])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_the_ops_that_they_fuse(dtype, interp_guard, assert_within):
    """Up to what those round in between: the normed tokens, their products, the activation."""
    x, weight, norm, draw = _draw(3, 12, 200, dtype)
    residual = torch.randn(3, 12, generator=draw).to(dtype)
    with interp_guard():
        plain = norm_linear(x, norm, EPS, weight)
        gated = norm_linear_silu_mul(x, norm, EPS, weight)
        added = linear_add(x, weight, residual)
    normed, _ = rms_norm(x, norm, EPS)
    sizes = normed.double().abs() @ weight.double().abs().t()
    close = (2 * torch.finfo(dtype).eps + 300 * 2**-24) * (1 + sizes)
    assert_within(plain, linear(normed, weight), close)
    gate, up = close.chunk(2, dim=1)
    gate_size, up_size = sizes.chunk(2, dim=1)
    expected = silu_mul(linear(normed, weight))
    assert_within(gated, expected, 1.1 * gate * (1 + up_size) + up * (1 + gate_size))
    sizes = x.double().abs() @ weight.double().abs().t() + residual.double().abs()
    _, expected = rms_norm(linear(x, weight), norm[:12], EPS, residual)
    assert_within(added, expected, (2 * torch.finfo(dtype).eps + 300 * 2**-24) * sizes)


@pytest.mark.parametrize("position", range(3))
def test_what_is_not_finite_stays_with_its_token(position, interp_guard):
    """Padding of captured steps may hold anything; here more than it can hold."""
    x, weight, norm, draw = _draw(3, 10, 72, torch.float32)
    residual = torch.randn(3, 10, generator=draw)
    splits, _ = _splits([SPLIT + 5] * 3, 2, 36, None)
    others = [i for i in range(3) if i != position]

    def run():
        with interp_guard():
            return (
                norm_linear(x, norm, EPS, weight),
                norm_linear_silu_mul(x, norm, EPS, weight),
                linear_add(x, weight, residual),
                merge_linear_add(splits, weight, residual),
            )

    clean = run()
    x[position] = torch.nan
    splits.values[position] = torch.nan
    for before, after in zip(clean, run(), strict=True):
        assert torch.equal(before[others], after[others])
        assert after[position].isnan().all()


def test_large_numbers_have_a_norm(interp_guard):
    x = torch.full((1, 64), 1e17)
    with interp_guard():
        y = norm_linear(x, torch.ones(64), EPS, torch.eye(64))
    torch.testing.assert_close(y, torch.ones(1, 64))


def test_no_tokens(interp_guard):
    x, norm, weight = torch.zeros(0, 16), torch.ones(16), torch.ones(8, 16)
    splits = Splits(torch.zeros(0, 1, 2, 8), torch.zeros(0, 1, 2, 2), torch.zeros(0).int(), None)
    with interp_guard():
        assert norm_linear(x, norm, EPS, weight).shape == (0, 8)
        assert norm_linear_silu_mul(x, norm, EPS, weight).shape == (0, 4)
        assert linear_add(x, weight, torch.zeros(0, 8)).shape == (0, 8)
        assert merge_linear_add(splits, weight, torch.zeros(0, 8)).shape == (0, 8)
