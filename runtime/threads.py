"""How the threads of torch's kernels behave when this process is not alone."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Have OpenMP threads sleep while they wait; call it before torch is imported.

    By default they spin. Whenever another program has work for one of the cores, every
    parallel region then waits for a thread that is not running: with one busy neighbour on two
    cores the demo model decodes 1.5 tokens/s spinning and 6.9 sleeping (quiet: 16.4 and 14.9).
    A setting of the user's own is left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, where the system knows one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
