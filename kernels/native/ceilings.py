"""What this machine's memory and arithmetic reach at best: kernels are judged by that."""

from __future__ import annotations

import time

import torch

from qwell.kernels import _native
from qwell.kernels.native.runner import ISAS

BUFFER_BYTES = 512 << 20
"""More than a last-level cache holds, by far."""

_BURSTS_PER_THREAD = 8


class CeilingProbe:
    """Measures read bandwidth and the fp32 FMA rate with a pool of threads, briefly."""

    def __init__(
        self, threads: int, buffer_bytes: int = BUFFER_BYTES, isa: str = next(iter(ISAS))
    ) -> None:
        """Start so many threads, the caller's counted, and take a buffer of so many bytes."""
        self._isa = ISAS[isa]
        self._pool = _native.Pool(threads)
        # Written, not only reserved: pages that nobody wrote to are all the same one.
        self._buffer = torch.ones(buffer_bytes // 4, dtype=torch.float32)

    def read_bandwidth(self) -> float:
        """Bytes a second of reading the buffer once."""
        start = time.perf_counter()
        _native.read_all(self._isa, self._pool, self._buffer.data_ptr(), self._buffer.numel())
        return self._buffer.nbytes / (time.perf_counter() - start)

    def fma_rate(self) -> float:
        """Multiplications and additions a second, both counted, in independent chains."""
        start = time.perf_counter()
        flops = _native.fma_burst(self._isa, self._pool, _BURSTS_PER_THREAD * self._pool.threads)
        return flops / (time.perf_counter() - start)
