"""Facts about a compiled kernel that its machine code alone tells."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triton import knobs
from triton.compiler import CompiledKernel

WIDE = 16
"""Bytes a thread loads with the widest access that every architecture has, 128 bits."""

# "        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;"
_SASS_INSTRUCTION = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]*)(?=[\s;])"
)
_GCN_INSTRUCTION = re.compile(r"^\s+([a-z]+_[a-z0-9_]+)(?=\s|$)", re.MULTILINE)

_COUNTED = {
    "tensor": r"HMMA|IMMA|QMMA|DMMA|HGMMA|QGMMA|IGMMA|UTC\w*MMA|v_s?mfma_",
    "async_copy": r"LDGSTS|(?:global|buffer)_load_lds_",
    "bulk_copy": r"UTMA|UBLKCP",
    "local": r"LDL|STL|scratch_",
}
_LOAD = re.compile(r"LDG(?:STS)?(?=\.|$)|(?:global|buffer|flat)_load_")
_GCN_LOAD_BYTES = {
    "ubyte": 1,
    "sbyte": 1,
    "dword": 4,
    "dwordx2": 8,
    "dwordx3": 12,
    "dwordx4": 16,
    "b32": 4,
    "b64": 8,
}


@dataclass(frozen=True)
class Facts:
    """What one binary uses and contains.

    Attributes:
        warps: of one program, those of warp-specialised partitions included.
        registers: of a thread (on AMD GPUs vector and accumulation registers together).
        shared_bytes: shared memory of a program.
        tensor: instructions that use matrix units.
        async_copy, bulk_copy: copies to shared memory by threads and by the copy engine (TMA).
        local: loads and stores of local memory, which is where registers spill to.
        wide_load_share: part of the bytes of global loads that 128-bit loads or wider move.
    """

    warps: int
    registers: int
    shared_bytes: int
    instructions: int
    tensor: int
    async_copy: int
    bulk_copy: int
    local: int
    wide_load_share: float


def instructions_of(kernel: CompiledKernel) -> tuple[str, ...]:
    """Names of a kernel's machine instructions in order: "LDG.E.128", "global_load_dwordx4"."""
    if "amdgcn" in kernel.asm:
        return tuple(_GCN_INSTRUCTION.findall(kernel.asm["amdgcn"]))
    listing = _run_on_cubin(kernel, knobs.nvidia.nvdisasm.path, "-c")
    return tuple(_SASS_INSTRUCTION.findall(listing))


def read_facts(kernel: CompiledKernel) -> Facts:
    """Disassemble a kernel and count."""
    names = instructions_of(kernel)
    counts = {
        what: sum(bool(re.match(pattern, name)) for name in names)
        for what, pattern in _COUNTED.items()
    }
    return Facts(
        warps=kernel.metadata.num_warps,
        registers=_registers(kernel),
        shared_bytes=kernel.metadata.shared,
        instructions=len(names),
        wide_load_share=_wide_load_share(names),
        **counts,
    )


def _registers(kernel: CompiledKernel) -> int:
    if "amdgcn" in kernel.asm:
        # The unified count of vector and accumulation registers, rounded up as it is allocated.
        pattern, text = r"\.vgpr_count:\s+(\d+)", kernel.asm["amdgcn"]
    else:
        pattern = r"REG:(\d+)"
        text = _run_on_cubin(kernel, knobs.nvidia.cuobjdump.path, "-res-usage")
    return max(map(int, re.findall(pattern, text)))


def _wide_load_share(names: Sequence[str]) -> float:
    widths = [_load_bytes(name) for name in names if _LOAD.match(name)]
    return sum(width for width in widths if width >= WIDE) / sum(widths) if widths else 1.0


def _load_bytes(name: str) -> int:
    if "_load_" in name:
        # Those of CDNA 4 may go to shared memory: "global_load_lds_dwordx4".
        return _GCN_LOAD_BYTES.get(name.partition("_load_")[2].removeprefix("lds_"), 2)
    parts = name.split(".")
    bits = max((int(part) for part in parts if part in ("64", "128", "256")), default=0)
    if bits:
        return bits // 8
    if {"U8", "S8"} & set(parts):
        return 1
    return 2 if {"U16", "S16"} & set(parts) else 4


def _run_on_cubin(kernel: CompiledKernel, tool: str, option: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        return subprocess.run(
            [tool, option, str(file)], capture_output=True, text=True, check=True
        ).stdout
