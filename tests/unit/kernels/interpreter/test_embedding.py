"""The Triton embedding: rows of the table, bit for bit."""

from __future__ import annotations

import pytest
import torch
from triton.runtime.errors import InterpreterError

from qwell.kernels.triton.embedding import embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1, 63, 256, 576, 2500])
def test_gives_rows_of_the_table(width, dtype, interp_guard, nan_empty):
    table = torch.randn(11, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    table[3, 0] = torch.inf
    ids = torch.tensor([10, 0, 3, 3, 7], dtype=torch.int32)
    with interp_guard(), nan_empty():
        y = embedding(ids, table)
    assert y.dtype == dtype
    assert torch.equal(y, table[ids])


def test_reads_only_the_rows_it_gives(interp_guard):
    with interp_guard(), pytest.raises(InterpreterError, match="out-of-bounds load"):
        embedding(torch.tensor([11], dtype=torch.int32), torch.zeros(11, 64))


def test_no_tokens(interp_guard):
    with interp_guard():
        y = embedding(torch.zeros(0, dtype=torch.int32), torch.zeros(11, 64))
    assert y.shape == (0, 64)
