"""How the thread pools of libraries behave when this process has, or meets, other work."""

from __future__ import annotations

import os

_SETTINGS = {
    # OpenMP threads spin while they wait. Whenever another program has work for one of the
    # cores, every parallel region of torch then waits for a thread that is not running: with one
    # busy neighbour on two cores the demo model decoded 1.5 tokens/s spinning and 6.9 sleeping
    # (quiet: 16.4 and 14.9).
    "OMP_WAIT_POLICY": "passive",
    # Texts come one at a time, and numpy computes no products: threads that would only be there.
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
}


def restrain_thread_pools() -> None:
    """Keep libraries from starting threads, or spinning on them, beside our own.

    Call it before torch is imported. A setting of the user's own is left alone.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
