"""How much memory the KV cache may take."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# What other programs and activations may still need: on CPUs memory is shared with everybody,
# on GPUs with the step's own activations.
CPU_SHARE = 0.25
GPU_SHARE = 0.85


def cache_budget(device: torch.device) -> int:
    """Bytes that the KV cache may take on `device`, once the weights are loaded."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * GPU_SHARE)
    return int(_free_host_bytes() * CPU_SHARE)


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
