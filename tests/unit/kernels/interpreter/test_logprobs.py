"""The Triton logprobs against the reference, in the guarded interpreter."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.reference.logprobs import logprobs as reference
from qwell.kernels.triton import logprobs as module
from qwell.kernels.triton.configs.logprobs import Settings
from qwell.kernels.triton.logprobs import logprobs


def tolerance(logits, logprob):
    """Of fp32: a lane's sum of V / 4096 terms, their tree, exp, log; and x - x_max - log_sum,
    where x - x_max is as large as the log-probability."""
    terms = logits.shape[-1] / 4096 + 32
    return 2**-24 * (terms + 4 * logprob.abs().double())


# 151936 ids are Qwen3's; 9001 is no multiple of anything, and above a block.
@pytest.mark.parametrize(
    ("size", "top"), [(1, 1), (20, 20), (1000, 0), (1000, 5), (9001, 20), (151936, 20)]
)
@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "ties"])
def test_equals_the_reference(size, top, distinct, interp_guard, nan_empty, assert_within):
    draw = torch.Generator().manual_seed(size + top)
    logits = 4 * torch.randn(3, size, generator=draw)
    if not distinct:
        logits = (logits / 4).round()
    logits[1] -= 100.0
    logits[2, ::5] = -torch.inf
    logits[2, 0] = -0.0
    ids = torch.randint(size, (3,), generator=draw, dtype=torch.int32)
    with interp_guard(), nan_empty():
        given, top_ids, top_logprobs = logprobs(logits, ids, top)
    expected = reference(logits, ids, top)
    assert_within(given, expected[0], tolerance(logits, expected[0].nan_to_num(neginf=0)))
    assert_within(top_logprobs, expected[2], tolerance(logits, expected[2].nan_to_num(neginf=0)))
    assert torch.equal(top_ids, expected[1])


def test_candidates_beyond_the_capacity_change_nothing(interp_guard, monkeypatch):
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).round()
    ids = torch.tensor([3, 499], dtype=torch.int32)
    with interp_guard():
        _, expected, _ = logprobs(logits, ids, 20)
        monkeypatch.setattr(module, "settings", lambda _: Settings(64, num_warps=1, capacity=16))
        _, top_ids, _ = logprobs(logits, ids, 20)
    assert torch.equal(top_ids, expected)


def test_bits_depend_on_the_row_alone(interp_guard):
    logits = torch.randn(5, 9001, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(5, dtype=torch.int32)
    with interp_guard():
        together = logprobs(logits, ids, 4)
        for s in (0, 3):
            alone = logprobs(logits[s : s + 1], ids[s : s + 1], 4)
            for one, all_rows in zip(alone, together, strict=True):
                assert torch.equal(one[0], all_rows[s])
    # The sum over a row is one that another order of summing would change.
    assert not torch.equal(logits.exp().sum(1), logits.exp().view(5, -1).flip(1).cumsum(1)[:, -1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the NaN that it is about
def test_ids_are_valid_whatever_the_logits(interp_guard):
    logits = torch.zeros(4, 40)
    logits[0], logits[1], logits[2], logits[3, 5:38] = torch.nan, torch.inf, -torch.inf, torch.nan
    with interp_guard():
        _, top_ids, _ = logprobs(logits, torch.zeros(4, dtype=torch.int32), 20)
    assert top_ids.min() >= 0
    assert top_ids.max() < 40


def test_no_rows(interp_guard):
    with interp_guard():
        given, top_ids, top_logprobs = logprobs(torch.zeros(0, 10), torch.zeros(0).int(), 3)
    assert (given.shape, top_ids.shape, top_logprobs.shape) == ((0,), (0, 3), (0, 3))
