"""The Triton sample's refusals; its machine code is held to limits in tests/unit/bench."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.sample import sample


def arguments(rows):
    column = torch.ones(rows, dtype=torch.float64)
    return {
        "temperature": column,
        "top_k": torch.zeros(rows, dtype=torch.int32),
        "top_p": column,
        "min_p": column,
        "typical_p": column,
        "uniform": column,
    }


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(8), r"must be torch.float32 of shape \[S, V >= 1\], got .* \(8,\)"),
        (torch.zeros(2, 0), r".* of shape \[S, V >= 1\], got .* \(2, 0\)"),
        (torch.zeros(2, 8, dtype=torch.bfloat16), "must be torch.float32 .* got torch.bfloat16"),
        (torch.zeros(8, 2).T, "must be contiguous"),
    ],
)
def test_refuses_logits_that_it_would_misread(logits, message):
    with pytest.raises(KernelError, match=f"sample: logits {message}"):
        sample(logits, **arguments(2))


def test_refuses_parameters_of_another_batch():
    with pytest.raises(KernelError, match=r"sample: top_p must have shape \(2,\), got \(3,\)"):
        sample(torch.zeros(2, 8), **(arguments(2) | {"top_p": torch.ones(3)}))
