"""Masks: which logits they ban."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.runtime import constraints
from qwell.runtime.constraint import mask_words
from qwell.runtime.constraints import ban_on_device, ban_on_host

VOCAB = 100


@pytest.mark.parametrize("ban", [ban_on_host, ban_on_device])
@given(st.lists(st.sets(st.integers(0, VOCAB - 1)), max_size=4), st.randoms())
def test_only_allowed_logits_are_left(
    ban: Callable[..., None], allowed: list[set[int]], random: Random
) -> None:
    rows = np.array(random.sample(range(5), len(allowed)), dtype=np.int64)
    bits = np.zeros((len(allowed), mask_words(VOCAB)), dtype=np.uint32)
    logits = torch.randn(5, VOCAB)
    expected = logits.clone()
    for mask, ids, row in zip(bits, allowed, rows, strict=True):
        for token_id in ids:
            mask[token_id // 32] |= np.uint32(1 << token_id % 32)
        expected[row, [i for i in range(VOCAB) if i not in ids]] = -torch.inf
    with mock.patch.object(constraints, "_BANNED_ROWS", 3):  # so that there are more
        ban(logits, rows, bits)
    assert torch.equal(logits, expected)
