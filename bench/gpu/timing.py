"""How long a call takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch

FLUSH_BYTES = 512 << 20
"""More than the L2 cache of any GPU: reading so much leaves nothing of a call's inputs in it.

Reading, because what is written stays there, and goes to memory when the call needs the room."""

FLUSHES = 3
"""Half a millisecond of reading: meanwhile the host has queued the call, whose launches would
otherwise be measured instead of its kernels."""


class Timer(Protocol):
    """Measures calls, one after the other."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Median duration of `run` on a device that has none of its inputs in a cache."""


class CudaTimer:
    """Events on the current stream, around one call at a time."""

    def __init__(self, device: torch.device, repeats: int = 15) -> None:
        self._read = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device=device)
        self._repeats = repeats

    def seconds(self, run: Callable[[], object]) -> float:
        run()  # compiles
        laps = [self._lap(run) for _ in range(self._repeats)]
        torch.cuda.synchronize()
        milliseconds: float = statistics.median(start.elapsed_time(end) for start, end in laps)
        return milliseconds / 1e3

    def _lap(self, run: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(FLUSHES):
            self._read.amax()
        start.record()
        run()
        end.record()
        return start, end


class HostTimer:
    """The clock of the host, for devices that compute while they are asked."""

    def __init__(self, repeats: int = 3) -> None:
        self._repeats = repeats

    def seconds(self, run: Callable[[], object]) -> float:
        run()
        return statistics.median(_lap(run) for _ in range(self._repeats))


def _lap(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timer_for(device: torch.device) -> Timer:
    """The timer that measures a device's work."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()
