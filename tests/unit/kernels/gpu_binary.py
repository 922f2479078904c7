"""Compiles Triton kernels for NVIDIA GPUs on machines without one and reads the machine code.

Kernels go through JITFunction.warmup with a driver that can only name its target, so arguments
are specialised as at a real launch: alignment decides the width of loads.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, MockTensor


@dataclass(frozen=True)
class GpuBinary:
    """Machine code of one kernel: its instructions in order, such as "LDG.E.128"."""

    cubin: bytes
    instructions: tuple[str, ...]

    def matching(self, pattern: str) -> list[str]:
        """Instructions whose name starts with a match of the regular expression."""
        return [name for name in self.instructions if re.match(pattern, name)]

    @property
    def spills(self) -> list[str]:
        """Loads and stores of local memory, which is where registers spill to."""
        return self.matching(r"LDL|STL")


class _CompileOnlyDriver:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def compile_for_gpu(
    kernel: JITFunction[..., Any],
    arguments: Sequence[Any],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    compute_capability: int = 90,
) -> GpuBinary:
    """Compile a kernel; torch dtypes among the arguments stand for 16-byte aligned tensors."""
    mocked = [MockTensor(a) if isinstance(a, torch.dtype) else a for a in arguments]
    target = GPUTarget("cuda", compute_capability, 32)
    # Not set_active and reset_active: the latter fails where there is no GPU to return to.
    with mock.patch.object(driver, "_active", _CompileOnlyDriver(target)):
        compiled = kernel.warmup(*mocked, grid=(1,), **constants, **options)
    cubin = compiled.asm["cubin"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        listing = subprocess.run(
            [knobs.nvidia.nvdisasm.path, "-c", str(file)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    # "        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;"
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]*)", listing)
    return GpuBinary(cubin, tuple(names))
