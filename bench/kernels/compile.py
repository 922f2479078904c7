"""Compiles what an op launches for GPUs that this machine need not have.

Ops run on meta tensors and compile their kernels instead of launching them: with the arguments,
constants and launch settings of the real launch, and specialised as it would be, since the
alignment of arguments decides the width of loads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Launch:
    """A kernel and the number of its programs."""

    kernel: CompiledKernel
    programs: int


class _CompileOnlyDriver:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        # Triton keeps the kernels of every device apart by this.
        return f"{self._target.backend}:{self._target.arch}"

    def get_current_stream(self, _device: str) -> int:
        return 0


def target_of(arch: str) -> GPUTarget:
    """Triton's target for "sm_90", "gfx942", ..."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


@contextlib.contextmanager
def compile_only(arch: str) -> Iterator[list[Launch]]:
    """Launches inside compile for `arch` and go to the list that is returned, in their order."""
    with (
        # Not set_active and reset_active: the latter fails where there is no GPU to return to.
        mock.patch.object(driver, "_active", _CompileOnlyDriver(target_of(arch))),
        record_launches(launch=False) as launches,
    ):
        yield launches


@contextlib.contextmanager
def record_launches(*, launch: bool = True) -> Iterator[list[Launch]]:
    """Launches inside go to the list that is returned; without `launch` that is all they do."""
    launches: list[Launch] = []
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> CompiledKernel:
        kernel = original(self, *args, grid=grid, warmup=warmup or not launch, **kwargs)
        if not warmup:
            launches.append(Launch(kernel, math.prod(grid)))
        return kernel

    with mock.patch.object(JITFunction, "run", run):
        yield launches
