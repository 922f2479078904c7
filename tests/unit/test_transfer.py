"""Lists that travel together arrive apart, aligned, and unchanged."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.runtime.transfer import ALIGNMENT_BYTES, to_device


@given(
    lists=st.lists(st.lists(st.integers(-1, 2**31 - 1), max_size=9), min_size=1, max_size=6),
    dtype=st.sampled_from((torch.int32, torch.float64)),
)
def test_lists_arrive_as_they_were(lists: list[list[int]], dtype: torch.dtype) -> None:
    tensors = to_device(lists, dtype, torch.device("cpu"))
    assert [tensor.tolist() for tensor in tensors] == lists
    first = tensors[0].data_ptr()
    assert all((tensor.data_ptr() - first) % ALIGNMENT_BYTES == 0 for tensor in tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
