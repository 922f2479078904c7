"""Lists that travel together arrive apart, aligned, and unchanged."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.runtime.transfer import ALIGNMENT_BYTES, arrays_to_device, to_device


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


@given(
    ints=st.lists(st.integers(-1, 2**31 - 1), max_size=9),
    floats=st.lists(st.floats(allow_nan=False), max_size=9),
)
def test_arrays_of_two_dtypes_arrive_as_they_were(ints: list[int], floats: list[float]) -> None:
    arrays = [np.array(ints, dtype=np.int32), np.array(floats), np.array(ints, dtype=np.int32)]
    tensors = arrays_to_device(arrays, torch.device("cpu"))
    assert [tensor.tolist() for tensor in tensors] == [ints, floats, ints]
    assert [tensor.dtype for tensor in tensors] == [torch.int32, torch.float64, torch.int32]
    layout = arrays_to_device(arrays, torch.device("meta"))
    assert all(
        tensor.storage_offset() * tensor.itemsize % ALIGNMENT_BYTES == 0 for tensor in layout
    )
