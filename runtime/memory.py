"""How much memory there is, and how much of it the KV cache may take."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from qwell.runtime.control_groups import ControlGroup, control_groups, read_text
from qwell.runtime.errors import EngineStartError

log = logging.getLogger(__name__)

# By version of control groups: the limit, what is taken of it, and what of that is dropped first.
_MEMORY_FILES = {
    1: (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}

# Main memory is shared with every other program on the machine.
CPU_SHARE = 0.25


@contextmanager
def enough_memory(wanted_for: str) -> Iterator[None]:
    """Turn an allocation that fails within into an EngineStartError that says what it was for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for what fails on a CPU.
        on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise EngineStartError(f"there is not enough memory for {wanted_for}") from error


def host_cache_budget(root: Path = Path("/")) -> int:
    """Bytes of main memory that the KV cache may take, once the weights are loaded.

    `root` holds proc and sys.
    """
    return int(_free_host_bytes(root) * CPU_SHARE)


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


def _free_host_bytes(root: Path) -> int:
    """What the machine has free, or this process's control groups or ulimit -v where less."""
    available = _kib(root / "proc/meminfo", "MemAvailable")
    if available is None:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    groups = [_left_of_group(group) for group in control_groups("memory", root)]
    free = min([available, *(left for left in groups if left is not None)])
    # Packed weights are mapped: they would be dropped like any file, and every step would pay.
    free -= _kib(root / "proc/self/status", "RssFile") or 0
    addresses = _left_of_addresses()
    return max(0, free if addresses is None else min(free, addresses))


def _kib(path: Path, name: str) -> int | None:
    """Bytes of a line such as "name: 5 kB" of a file; None where there is none."""
    for line in (read_text(path) or "").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _left_of_group(group: ControlGroup) -> int | None:
    """What a control group may still take; None without a limit.

    Files that the system has cached for it count as its memory, but are dropped when it needs
    more: those of a checkpoint that has just been read fill a container to its limit.
    """
    limit, used, dropped = _MEMORY_FILES[group.version]
    most, taken = group.read(limit), group.read(used)
    if most is None or taken is None or not most.isdigit():
        return None
    stat = dict(line.split(maxsplit=1) for line in (group.read("memory.stat") or "").splitlines())
    return int(most) - int(taken) + sum(int(stat.get(name, 0)) for name in dropped)


def _left_of_addresses() -> int | None:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    mapped = read_text(Path("/proc/self/statm"))
    if most == resource.RLIM_INFINITY or mapped is None:
        return None
    return most - int(mapped.split()[0]) * resource.getpagesize()
