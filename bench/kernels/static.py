"""The static report: what compilers make of every kernel, for GPUs that need not be here."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, product

from triton.runtime.errors import TritonError

from qwell.bench.kernels.binary import Facts
from qwell.bench.kernels.cases import CASES, Case
from qwell.bench.kernels.chips import CHIPS, MULTIPROCESSORS
from qwell.bench.kernels.compile import Launch, compile_only
from qwell.bench.kernels.facts_cache import cached_facts
from qwell.kernels.errors import KernelError

MATRIX = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")
"""Architectures that every kernel must compile for: all that a launch table has rows for."""


@dataclass(frozen=True)
class Row:
    """A kernel of a case as compiled for an architecture.

    Attributes:
        programs: of the launch.
        resident: programs that fit on a multiprocessor at a time.
        occupancy: part of a multiprocessor's warps that they fill.
        floors_us: per chip, microseconds that the case (all its kernels) takes at least.
        faults: limits that the kernel does not keep.
    """

    arch: str
    op: str
    case: str
    kernel: str
    programs: int
    facts: Facts
    resident: int
    occupancy: float
    floors_us: dict[str, float]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.arch} {self.op} {self.case} {self.kernel}"


def static_report(archs: Sequence[str], ops: Sequence[str], workers: int = 1) -> list[Row]:
    """Compile all cases of `ops` for `archs` and read the binaries, in parallel processes.

    What was read before is not compiled again. Raises KernelError for a case that fails to
    compile.
    """
    tasks = list(product(archs, ops))
    if workers == 1:
        return list(chain.from_iterable(_report_op(arch, op) for arch, op in tasks))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        return list(chain.from_iterable(pool.map(_report_op, *zip(*tasks, strict=True))))


def _report_op(arch: str, op: str) -> list[Row]:
    return [row for case in CASES[op](arch) for row in _report_case(arch, op, case)]


def _report_case(arch: str, op: str, case: Case) -> list[Row]:
    try:
        with compile_only(arch) as launches:
            case.run()
    except (TritonError, RuntimeError) as error:
        raise KernelError(f"{arch} {op} {case.name} does not compile: {error}") from error
    floors = {
        chip.name: chip.floor_us(case.bytes_moved, case.flops, case.factors) for chip in CHIPS
    }
    rows = [_row(arch, op, case, floors, launch) for launch in launches]
    for name in (*case.tensor_kernels, *case.wide_kernels):
        if name not in {row.kernel for row in rows}:
            raise KernelError(f"{arch} {op} {case.name} launches no kernel {name}")
    return rows


def _row(arch: str, op: str, case: Case, floors: dict[str, float], launch: Launch) -> Row:
    facts = cached_facts(launch.kernel)
    multiprocessor = MULTIPROCESSORS[arch]
    resident = multiprocessor.resident_programs(facts.warps, facts.registers, facts.shared_bytes)
    return Row(
        arch=arch,
        op=op,
        case=case.name,
        kernel=launch.kernel.name,
        programs=launch.programs,
        facts=facts,
        resident=resident,
        occupancy=resident * facts.warps / multiprocessor.warps,
        floors_us=floors,
        faults=tuple(_faults(case, launch.kernel.name, facts, resident)),
    )


def _faults(case: Case, kernel: str, facts: Facts, resident: int) -> list[str]:
    faults = []
    if facts.local:
        faults.append(f"{facts.local} accesses to local memory")
    if not resident:
        faults.append("no program fits on a multiprocessor")
    if kernel in case.tensor_kernels and not facts.tensor:
        faults.append("no matrix instructions")
    if kernel in case.wide_kernels and facts.wide_load_share < case.least_wide_share:
        faults.append(f"only {facts.wide_load_share:.0%} of loaded bytes by 128-bit loads")
    return faults


def table(rows: Sequence[Row]) -> str:
    """The report as text, a line a kernel."""
    chips = [chip.name for chip in CHIPS]
    heading = [
        *(
            "arch",
            "op",
            "case",
            "kernel",
            "programs",
            "warps",
            "regs",
            "shared",
            "per SM",
            "occup.",
        ),
        *("instr", "tensor", "async", "bulk", "local", "wide", *(f"{c} us" for c in chips)),
    ]
    lines = [heading, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = 4  # the first columns are text, to the left; numbers go to the right
    aligned = [
        "  ".join(
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    faults = [f"{row}: {fault}" for row in rows for fault in row.faults]
    return "\n".join([*aligned, "", *faults, f"{len(rows)} kernels, {len(faults)} faults"])


def _cells(row: Row) -> list[str]:
    facts = row.facts
    return [
        *(row.arch, row.op, row.case, row.kernel, str(row.programs)),
        *(str(facts.warps), str(facts.registers), str(facts.shared_bytes)),
        *(str(row.resident), f"{row.occupancy:.0%}", str(facts.instructions)),
        *(str(facts.tensor), str(facts.async_copy), str(facts.bulk_copy), str(facts.local)),
        f"{facts.wide_load_share:.0%}",
        *(f"{floor:.1f}" for floor in row.floors_us.values()),
    ]
