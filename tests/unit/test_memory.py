"""How much of a GPU the KV cache may take, on a GPU that is made up."""

from __future__ import annotations

import pytest
import torch

from qwell.runtime.memory import gpu_cache_budget

GIB = 1 << 30


class Gpu:
    """10 GiB of memory, of which others have 1; torch keeps what it allocated last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, weights: int) -> None:
        self._weights = self._peak = weights
        self._cached = 0
        for name in (
            "memory_allocated",
            "max_memory_allocated",
            "reset_peak_memory_stats",
            "mem_get_info",
            "synchronize",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty_cache)

    def run(self, size: int) -> None:
        """A step that takes so many bytes, and gives them back."""
        self._peak = max(self._peak, self._weights + size)
        self._cached = max(self._cached, size)

    def memory_allocated(self, _: torch.device) -> int:
        return self._weights

    def max_memory_allocated(self, _: torch.device) -> int:
        return self._peak

    def reset_peak_memory_stats(self, _: torch.device) -> None:
        self._peak = self._weights

    def mem_get_info(self, _: torch.device) -> tuple[int, int]:
        return 9 * GIB - self._weights - self._cached, 10 * GIB

    def synchronize(self, _: torch.device) -> None:
        pass

    def empty_cache(self) -> None:
        self._cached = 0


def test_the_cache_has_what_weights_others_and_steps_of_all_kinds_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu(monkeypatch, weights=4 * GIB)
    cuda = torch.device("cuda")
    steps = [lambda: gpu.run(2 * GIB), lambda: gpu.run(1 * GIB)]
    # 9 of 10 GiB, less 1 of others, 4 of weights, 2 of eager steps and 1 of captured ones.
    assert gpu_cache_budget(cuda, 0.9, steps) == 1 * GIB
    assert gpu_cache_budget(cuda, 0.9, steps[:1]) == 2 * GIB
    assert gpu_cache_budget(cuda, 0.5, steps) == 0
