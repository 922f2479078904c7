"""logprobs in C++ against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.native.logprobs import bind
from qwell.kernels.native.runner import ISAS, Runner
from qwell.kernels.ops import MAX_TOP_LOGPROBS
from qwell.kernels.reference.logprobs import logprobs as reference

NATIVE = {isa: bind(Runner(threads=2, isa=isa)) for isa in ISAS}

each_isa = pytest.mark.parametrize("isa", NATIVE)


def _call(rows, vocabulary, seed=0, size=3.0, ties=False):
    """(logits, ids)"""
    generator = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(rows, vocabulary, generator=generator)
    ids = torch.randint(vocabulary, (rows,), generator=generator, dtype=torch.int32)
    return logits.round() if ties else logits, ids


@st.composite
def calls(draw):
    """(logits, ids, top); logits of any spread, perhaps with many equal ones or impossible ids."""
    vocabulary = draw(st.sampled_from([127, 128, 129, 4096, 4097]) | st.integers(1, 600))
    size = draw(st.sampled_from([0.01, 1.0, 3.0, 30.0, 1e4]))
    logits, ids = _call(
        draw(st.integers(0, 6)), vocabulary, draw(st.integers(0, 2**32)), size, draw(st.booleans())
    )
    if draw(st.booleans()):
        logits[:, 1::3] = -torch.inf
    return logits, ids, draw(st.integers(0, min(vocabulary, MAX_TOP_LOGPROBS)))


@each_isa
@given(calls())
def test_equals_reference(isa, nan_empty, assert_within, call):
    logits, ids, top = call
    with nan_empty():
        given_ids, top_ids, top_logprobs = NATIVE[isa](logits, ids, top)
    expected, expected_ids, expected_top = reference(logits, ids, top)
    # Both are rounded to fp32 once; near 0 the rounding of their sums in float64 is left.
    precision = torch.finfo(torch.float32).eps
    assert_within(given_ids, expected, precision * expected.abs().double() + 1e-12)
    assert_within(top_logprobs, expected_top, precision * expected_top.abs().double() + 1e-12)
    assert top_ids.dtype == torch.int32
    assert torch.equal(top_ids, expected_ids)


def test_probabilities_by_hand():
    logits = torch.tensor([[0.0, math.log(6), math.log(3), math.log(6)]])
    given_ids, top_ids, top_logprobs = bind(Runner(1))(logits, torch.tensor([2]).int(), 3)
    assert given_ids.exp().tolist() == pytest.approx([3 / 16])
    assert top_ids.tolist() == [[1, 3, 2]]
    assert top_logprobs.exp().tolist() == [pytest.approx([6 / 16, 6 / 16, 3 / 16])]


@each_isa
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bits_of_a_row_depend_on_nothing_else(isa, threads):
    logits, ids = _call(7, 20000)
    results = bind(Runner(threads, isa))(logits, ids, 20)
    for row in range(len(logits)):
        alone = NATIVE[isa](logits[row : row + 1].clone(), ids[row : row + 1], 20)
        for single, result in zip(alone, results, strict=True):
            assert torch.equal(single, result[row : row + 1])


@each_isa
def test_ids_are_ids_whatever_the_logits(isa):
    for value in (torch.nan, torch.inf, -torch.inf):
        logits = torch.full((3, 500), value)
        _, top_ids, _ = NATIVE[isa](logits, torch.zeros(3).int(), 20)
        assert top_ids.tolist() == [list(range(20))] * 3


@pytest.mark.parametrize(
    ("logits", "ids", "top", "message"),
    [
        (torch.zeros(8), torch.zeros(1).int(), 1, r"logits must be torch.float32 of shape \[S, V"),
        (torch.zeros(2, 8).half(), torch.zeros(2).int(), 1, "logits must be .* got torch.float16"),
        (torch.zeros(8, 2).T, torch.zeros(2).int(), 1, "logits must be contiguous"),
        (torch.zeros(2, 8).to("meta"), torch.zeros(2).int(), 1, "logits must be on the CPU"),
        (torch.zeros(2, 8), torch.zeros(3).int(), 1, r"ids must have shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 8), torch.zeros(2).long(), 1, "ids must be torch.int32, got torch.int64"),
        (torch.zeros(2, 8), torch.zeros(2).int().to("meta"), 1, "ids must be on the CPU"),
        (torch.zeros(2, 8), torch.zeros(2).int(), 9, r"top must be in 0\.\.8, got 9"),
        (torch.zeros(2, 80), torch.zeros(2).int(), 21, r"top must be in 0\.\.20, got 21"),
        (torch.zeros(2, 80), torch.zeros(2).int(), -1, r"top must be in 0\.\.20, got -1"),
    ],
)
def test_refuses_what_it_would_misread(logits, ids, top, message):
    with pytest.raises(KernelError, match=f"logprobs: {message}"):
        bind(Runner(1))(logits, ids, top)
