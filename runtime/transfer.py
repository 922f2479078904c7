"""Small host lists to the device in one copy, and small tensors back; neither waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Triton compiles a kernel again for pointers that are not multiples of 16 bytes.
ALIGNMENT_BYTES = 16

# numpy reads a list in a fraction of the time that torch takes.
_NUMPY = {torch.int32: np.int32, torch.float64: np.float64}
_TORCH = {number: dtype for dtype, number in _NUMPY.items()}


def arrays_to_device(
    arrays: Sequence[npt.NDArray[np.int32] | npt.NDArray[np.float64]], device: torch.device
) -> list[Tensor]:
    """One tensor for each array [n], of its dtype: on a CPU the array's own memory.

    Otherwise aligned views of a single buffer, for the reasons that `to_device` has.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    # Of a buffer without bytes torch gives no views of other dtypes.
    buffer = np.empty(max(size, 1), dtype=np.uint8)
    for start, array in zip(starts, arrays, strict=True):
        buffer[start : start + array.nbytes] = array.view(np.uint8)
    flat = torch.from_numpy(buffer)
    if device.type == "cuda":
        flat = flat.pin_memory()
    flat = flat.to(device, non_blocking=True)
    return [
        flat[start : start + array.nbytes].view(_TORCH[array.dtype.type])
        for start, array in zip(starts, arrays, strict=True)
    ]


def to_device(
    lists: Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """One tensor for each list, aligned views of a single buffer on `device`: int32 or float64.

    A copy to a GPU costs some ten microseconds whatever its size, and from pageable memory it
    also waits for the device: so the lists travel together, from pinned memory. It is new for
    every call, and torch's allocator hands it out again only after the copy: steps in flight
    cannot overwrite each other's lists.
    """
    step = ALIGNMENT_BYTES // dtype.itemsize
    values: list[float] = []
    starts: list[int] = []
    for column in lists:
        starts.append(len(values))
        values += column
        values += [0] * (-len(values) % step)
    flat = torch.from_numpy(np.array(values, dtype=_NUMPY[dtype]))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    return [flat[start : start + len(column)] for start, column in zip(starts, lists, strict=True)]


def to_host(values: Tensor) -> Callable[[], list[int]]:
    """Start to copy int values [N] to the host; what is returned waits for them."""
    if values.device.type != "cuda":
        return values.tolist
    wait = to_host_array(values)

    def wait_for_list() -> list[int]:
        ids: list[int] = wait().tolist()
        return ids

    return wait_for_list


def to_host_array(values: Tensor) -> Callable[[], npt.NDArray[Any]]:
    """Start to copy values of any shape to the host; what is returned waits for them."""
    if values.device.type != "cuda":
        return values.numpy
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(values.device))

    def wait() -> npt.NDArray[Any]:
        copied.synchronize()
        return host.numpy()

    return wait
