"""Compiles one Triton kernel for an NVIDIA GPU that need not be there; gives its machine code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.jit import JITFunction, MockTensor

from qwell.bench.kernels.binary import instructions_of
from qwell.bench.kernels.compile import compile_only


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


def compile_for_gpu(
    kernel: JITFunction[..., Any],
    arguments: Sequence[Any],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    compute_capability: int = 90,
) -> GpuBinary:
    """Compile a kernel; torch dtypes among the arguments stand for 16-byte aligned tensors."""
    mocked = [MockTensor(a) if isinstance(a, torch.dtype) else a for a in arguments]
    with compile_only(f"sm_{compute_capability}") as launches:
        kernel[(1,)](*mocked, **constants, **options)
    (launch,) = launches
    return GpuBinary(launch.kernel.asm["cubin"], instructions_of(launch.kernel))
