"""How much memory the KV cache may take."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

log = logging.getLogger(__name__)

# Main memory is shared with every other program on the machine.
CPU_SHARE = 0.25


def host_cache_budget() -> int:
    """Bytes of main memory that the KV cache may take, once the weights are loaded."""
    return int(_free_host_bytes() * CPU_SHARE)


def gpu_cache_budget(
    device: torch.device, utilization: float, steps: Sequence[Callable[[], object]]
) -> int:
    """Bytes of a GPU that the KV cache may take, once the weights are loaded.

    Args:
        device: the GPU.
        utilization: share of its memory that this process may take in all.
        steps: run the largest steps of each kind; what they take at their peaks stays free for
            all of them at once, as captured steps keep memory of their own.
    """
    peak = sum(_peak_bytes(device, step) for step in steps)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    log.info("the largest steps take %.2f GiB beside weights and cache", peak / 2**30)
    return max(0, int(total * utilization) - (total - free) - peak)


def _peak_bytes(device: torch.device, step: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _free_host_bytes() -> int:
    """What the machine has free, or the control group of this process where that is less."""
    free = _meminfo_available()
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
