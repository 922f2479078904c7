"""embedding, linear and silu_mul against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.reference.embedding import embedding
from qwell.kernels.reference.linear import linear
from qwell.kernels.reference.silu_mul import silu_mul

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
seeds = st.integers(0, 2**32)


def test_embedding_takes_rows_of_the_table():
    table = torch.arange(12.0).view(4, 3)
    rows = embedding(torch.tensor([3, 0, 3], dtype=torch.int32), table)
    assert rows.tolist() == [[9, 10, 11], [0, 1, 2], [9, 10, 11]]


@each_dtype
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 20), st.booleans(), seeds)
def test_linear_equals_the_sum_of_products(dtype, assert_within, rows, depth, width, biased, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, depth, generator=draw).to(dtype)
    weight = torch.randn(width, depth, generator=draw).to(dtype)
    bias = torch.randn(width, generator=draw).to(dtype) if biased else None

    a, b = x.double().numpy(), weight.double().numpy()
    c = np.zeros(width) if bias is None else bias.double().numpy()
    expected = torch.from_numpy(np.einsum("tk,nk->tn", a, b) + c)
    # Each of the products and sums in fp32, then a rounding before and after the bias.
    sizes = torch.from_numpy(np.einsum("tk,nk->tn", abs(a), abs(b)) + abs(c))
    tolerance = sizes * ((depth + 1) * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps)

    y = linear(x, weight, bias)
    assert_within(y, expected, tolerance)
    assert y.dtype == dtype


@each_dtype
@given(st.integers(1, 5), st.integers(1, 40), seeds)
def test_silu_mul_gates_the_second_half(dtype, assert_within, rows, width, seed):
    draw = torch.Generator().manual_seed(seed)
    gate_up = (4 * torch.randn(rows, 2 * width, generator=draw)).to(dtype)

    gate, up = np.split(gate_up.double().numpy(), 2, axis=1)
    expected = torch.from_numpy(gate / (1 + np.exp(-gate)) * up)
    # The sigmoid and the product in fp32, a rounding of silu and one of the product.
    precision = torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    tolerance = precision * expected.abs() + smallest * (torch.from_numpy(abs(up)) + 1)

    y = silu_mul(gate_up)
    assert_within(y, expected, tolerance)
    assert y.dtype == dtype
