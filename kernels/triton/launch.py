"""Which GPU a launch is for, and which row of a launch table serves it."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from triton.runtime.driver import driver

from qwell.kernels.errors import KernelError

OLDEST_CAPABILITY = (8, 0)
"""The first NVIDIA GPUs that compute with bfloat16 and copy to shared memory asynchronously."""

Row = TypeVar("Row")


def arch_of(device: torch.device) -> str:
    """Architecture of a GPU: "sm_90", "gfx942"; "default" for a CPU, where kernels are interpreted.

    It is the one that Triton compiles for: the current device's, which is the only one that it
    launches on.
    """
    if device.type == "cpu":
        return "default"
    return _arch(driver.active, device)


@functools.lru_cache(maxsize=32)
def _arch(active: Any, device: torch.device) -> str:  # noqa: ARG001 (devices may differ)
    # Every op of every layer asks, and a driver takes some microseconds to answer.
    target = active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


# Triton's own cdiv and next_power_of_2 are meant for kernels: outside them a call takes 3 us, and
# the launches of a layer make 25.


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; both positive."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n, which is positive."""
    return 1 << (n - 1).bit_length()


def pick(table: Mapping[str, tuple[Row, ...]], arch: str, serves: Callable[[Row], bool]) -> Row:
    """The first row for `arch` (or "default", where a table has none) that serves.

    Raises KernelError where no row does; an op that has limits refuses before it asks.
    """
    for row in table.get(arch, table["default"]):
        if serves(row):
            return row
    raise KernelError(f"the launch table has no row for this on {arch}")


def check_gpu(device: torch.device) -> None:
    """Refuse GPUs that the kernels cannot run on, and a machine without a C compiler.

    Triton has it compile the functions that load and launch kernels. Raises KernelError.
    """
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise KernelError(
            "Triton needs a C compiler to launch kernels, and there is none; install gcc or "
            "clang, or name one in the environment variable CC"
        )
    if torch.version.hip:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        needed, found = (".".join(map(str, c)) for c in (OLDEST_CAPABILITY, capability))
        raise KernelError(
            f"{torch.cuda.get_device_name(device)} has compute capability {found}; the kernels "
            f"need {needed} (A100, RTX 30 series) or later. Use device cpu"
        )
