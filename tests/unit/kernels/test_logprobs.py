"""logprobs: the reference by hand and in float64, the Triton version's refusals."""

from __future__ import annotations

import math

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.reference.logprobs import logprobs as reference
from qwell.kernels.triton.logprobs import logprobs as triton_logprobs


def test_probabilities_by_hand():
    logits = torch.tensor([[0.0, math.log(6), math.log(3), math.log(6)]])
    given, top_ids, top_logprobs = reference(logits, torch.tensor([2], dtype=torch.int32), 3)
    assert given.exp().tolist() == pytest.approx([3 / 16])
    assert top_ids.tolist() == [[1, 3, 2]]
    assert top_ids.dtype == torch.int32
    assert top_logprobs.exp().tolist() == [pytest.approx([6 / 16, 6 / 16, 3 / 16])]


def test_rows_of_many_ids_against_a_stable_sort():
    logits = torch.randn(7, 3000, generator=torch.Generator().manual_seed(0)).mul(4).round()
    ids = torch.arange(7, dtype=torch.int32)
    given, top_ids, top_logprobs = reference(logits, ids, 20)
    every = logits.double().log_softmax(1)
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(top_ids, order.int())
    torch.testing.assert_close(given, every[range(7), range(7)].float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(top_logprobs, every.gather(1, order).float(), rtol=1e-6, atol=0)


def test_no_top_and_no_rows():
    given, top_ids, top_logprobs = reference(torch.zeros(2, 5), torch.zeros(2).int(), 0)
    assert (given.shape, top_ids.shape, top_logprobs.shape) == ((2,), (2, 0), (2, 0))
    given, top_ids, _ = reference(torch.zeros(0, 5), torch.zeros(0).int(), 2)
    assert (given.shape, top_ids.shape) == ((0,), (0, 2))


@pytest.mark.parametrize(
    ("logits", "ids", "top", "message"),
    [
        (torch.zeros(8), 1, 1, r"logits must be torch.float32 of shape \[S, V >= 1\]"),
        (torch.zeros(2, 8).half(), 2, 1, "logits must be torch.float32 .* got torch.float16"),
        (torch.zeros(8, 2).T, 2, 1, "logits must be contiguous"),
        (torch.zeros(2, 8), 3, 1, r"ids must have shape \(2,\), got \(3,\)"),
        (torch.zeros(2, 8), 2, 9, r"top must be in 0\.\.8, got 9"),
        (torch.zeros(2, 80), 2, 21, r"top must be in 0\.\.20, got 21"),
        (torch.zeros(2, 80), 2, -1, r"top must be in 0\.\.20, got -1"),
    ],
)
def test_triton_refuses_what_it_would_misread(logits, ids, top, message):
    with pytest.raises(KernelError, match=f"logprobs: {message}"):
        triton_logprobs(logits, torch.zeros(ids, dtype=torch.int32), top)
