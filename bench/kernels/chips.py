"""What GPUs can do: limits of a multiprocessor, bandwidth and arithmetic of a chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """What the programs on one multiprocessor (SM, CU) share.

    Sources: CUDA programming guide, technical specifications per compute capability; AMD CDNA 3
    instruction set guide.

    Attributes:
        registers: 32-bit ones a lane, over all its warps.
        register_unit: they are handed to a warp in multiples of this many a lane.
        warps, programs: most that are resident.
        schedulers: a warp belongs to one of them, and so do its registers.
        shared_bytes: shared memory in all.
        reserved_bytes: of it taken by the system for every program.
    """

    registers: int
    register_unit: int
    warps: int
    programs: int
    schedulers: int
    shared_bytes: int
    reserved_bytes: int

    def resident_programs(self, warps: int, registers: int, shared_bytes: int) -> int:
        """How many programs of this size fit; 0 if not even one does."""
        unit = self.register_unit
        registers_of_warp = max(-(-registers // unit) * unit, unit)
        warps_of_scheduler = self.registers // self.schedulers // registers_of_warp
        by_warps = min(self.warps, warps_of_scheduler * self.schedulers) // warps
        by_shared = self.shared_bytes // (shared_bytes + self.reserved_bytes or 1)
        return min(by_warps, by_shared, self.programs)


def _nvidia(warps: int, programs: int, shared_kib: int) -> Multiprocessor:
    return Multiprocessor(2048, 8, warps, programs, 4, shared_kib * KIB, KIB)


MULTIPROCESSORS: Mapping[str, Multiprocessor] = {
    "sm_80": _nvidia(64, 32, 164),
    "sm_86": _nvidia(48, 16, 100),
    "sm_89": _nvidia(48, 24, 100),
    "sm_90": _nvidia(64, 32, 228),
    "sm_100": _nvidia(64, 32, 228),
    "sm_120": _nvidia(48, 24, 100),
    "gfx942": Multiprocessor(2048, 8, 32, 32, 4, 64 * KIB, 0),
    "gfx950": Multiprocessor(2048, 8, 32, 32, 4, 160 * KIB, 0),
}
"""By architecture; the keys are what kernels can be compiled for here."""


@dataclass(frozen=True)
class Chip:
    """A GPU as its datasheet has it.

    Attributes:
        bandwidth: of its memory, bytes a second.
        flops: dense multiplications and additions a second by the type of the factors.
    """

    name: str
    bandwidth: float
    flops: Mapping[str, float]

    def floor_us(self, bytes_moved: int, flops: int, factors: str) -> float:
        """Microseconds that moving these bytes or this arithmetic takes at least."""
        return max(bytes_moved / self.bandwidth, flops / self.flops[factors]) * 1e6


CHIPS = (
    Chip("A100", 2.039e12, {"fp32": 19.5e12, "bf16": 312e12, "int8": 624e12, "fp8": 312e12}),
    Chip("H100", 3.35e12, {"fp32": 67e12, "bf16": 989e12, "int8": 1979e12, "fp8": 1979e12}),
    Chip("H200", 4.8e12, {"fp32": 67e12, "bf16": 989e12, "int8": 1979e12, "fp8": 1979e12}),
    Chip("B200", 8.0e12, {"fp32": 80e12, "bf16": 2250e12, "int8": 4500e12, "fp8": 4500e12}),
    Chip("MI300X", 5.3e12, {"fp32": 163e12, "bf16": 1307e12, "int8": 2615e12, "fp8": 2615e12}),
)
"""80 GB and SXM versions. A100 has no FP8: its weights are computed with as bf16."""
