"""Memory of tensors that outlive Python's interest in them: what a recorded forward pass uses."""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_Buffer = npt.NDArray[np.uint8]


class Arena:
    """Hands out tensors, and their memory again once they and all views of them are dropped.

    The memory itself lives as long as the arena. In what order tensors come and go is up to the
    recorded code, which repeats it whenever it is run: what it dropped may be overwritten then.
    """

    def __init__(self) -> None:
        self._free: list[_Buffer] = []
        self._buffers: list[_Buffer] = []

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, contiguous."""
        size = max(torch.Size(shape).numel() * dtype.itemsize, 1)
        buffer = self._take(size)
        # An array of its own: torch keeps it for the storage's life, whatever views there are.
        piece = buffer[:size]
        weakref.finalize(piece, self._free.append, buffer)
        return torch.from_numpy(piece).view(dtype).view(shape)

    def _take(self, size: int) -> _Buffer:
        fitting = [i for i, buffer in enumerate(self._free) if buffer.nbytes >= size]
        if fitting:
            return self._free.pop(min(fitting, key=lambda i: self._free[i].nbytes))
        buffer = np.empty(size, dtype=np.uint8)
        self._buffers.append(buffer)
        return buffer
