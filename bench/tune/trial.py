"""Trying rows of a launch table on the calls that they would serve."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.compiler import CompiledKernel

from qwell.bench.gpu.attempt import Failure, attempt
from qwell.bench.gpu.calls import Call
from qwell.bench.gpu.parity import compare
from qwell.bench.gpu.timing import Timer
from qwell.bench.kernels.binary import read_facts
from qwell.bench.kernels.compile import record_launches
from qwell.bench.tune.space import Space
from qwell.kernels.fused_ops import FusedOps
from qwell.kernels.ops import Ops

SLOWER = 1.1
"""A row that takes so much longer than the present one on any call may not replace it."""


@dataclass(frozen=True)
class Rig:
    """What rows are tried on.

    Attributes:
        ops: for a model dtype; they launch with the settings of `arch`.
    """

    arch: str
    device: torch.device
    ops: Callable[[torch.dtype], Ops | FusedOps]
    timer: Timer


@dataclass
class Trial:
    """What came of a row.

    Attributes:
        seconds: of each call, in their order.
        refusal: why the row may not serve.
    """

    row: Any
    seconds: list[float] = field(default_factory=list)
    refusal: str | None = None

    @property
    def microseconds(self) -> float:
        """Geometric mean over the calls, which count alike however long they are."""
        return statistics.geometric_mean(self.seconds) * 1e6


@dataclass(frozen=True)
class _Run:
    outputs: list[Tensor]
    fault: str | None
    spills: bool = False
    seconds: float = math.inf


def try_rows(rig: Rig, space: Space, place: int, rows: Sequence[Any]) -> list[Trial]:
    """Check and time rows in place of one of a table; the first of them is the one in place.

    The others are refused if they fail, are wrong, spill registers, take much longer than the
    first on a call, or give other bits than it where all must give the same. A row that is
    refused is not tried on further calls. If the first fails, its trial is all that is returned.
    """
    present, *others = (Trial(row) for row in rows)
    for dtype, call in _calls(rig, space, place):
        ops = rig.ops(dtype)
        with _in_place(space, rig.arch, place, present.row):
            first = _run(call, ops, dtype, rig.timer)
        present.seconds.append(first.seconds)
        present.refusal = first.fault
        if present.refusal:
            return [present]
        for trial in others:
            if trial.refusal is None:
                with _in_place(space, rig.arch, place, trial.row):
                    run = _run(call, ops, dtype, rig.timer)
                trial.seconds.append(run.seconds)
                trial.refusal = run.fault or _objection(space, call, run, first)
    return [present, *others]


def _calls(rig: Rig, space: Space, place: int) -> Iterator[tuple[torch.dtype, Call]]:
    for load in space.loads_of(rig.arch, place):
        for call in space.calls(rig.device, load.dtype).of(load.step, space.ops):
            if call.case.endswith(load.cases):
                yield load.dtype, call


@contextlib.contextmanager
def _in_place(space: Space, arch: str, place: int, row: Any) -> Iterator[None]:
    """The row stands in the table itself: launches find it as they will once it is written."""
    rows = space.rows(arch)
    with mock.patch.dict(space.table, {arch: (*rows[:place], row, *rows[place + 1 :])}):
        yield


def _run(call: Call, ops: Ops | FusedOps, dtype: torch.dtype, timer: Timer) -> _Run:
    op = getattr(ops, call.op)
    outputs: list[Tensor] = []

    def keep(*arguments: Any) -> Any:
        result = op(*arguments)
        outputs.extend([result] if isinstance(result, Tensor) else result)
        outputs.extend(arguments[written] for written in call.written)
        return result

    keeping: dict[str, Any] = {call.op: keep}
    with record_launches() as launches:
        checked = compare(call, replace(ops, **keeping), dtype)
    if checked.failure:
        return _Run(outputs, _last_line(checked.failure))
    if not checked.ok:
        wrong = f"{checked.error:.1f} epsilons off, {checked.differing:.1%} of integers differ"
        return _Run(outputs, f"wrong on {call.case}: {wrong}")
    seconds = attempt(lambda: timer.seconds(lambda: op(*call.arguments)))
    if isinstance(seconds, Failure):
        return _Run(outputs, _last_line(seconds.text))
    spills = any(_spills(launch.kernel) for launch in launches)
    return _Run(outputs, None, spills, seconds)


def _objection(space: Space, call: Call, run: _Run, first: _Run) -> str | None:
    if run.spills:
        return "spills registers"
    same = all(map(_same_bits, run.outputs, first.outputs))
    if space.same_bits and not same:
        return f"other bits on {call.case}"
    if run.seconds > SLOWER * first.seconds:
        return f"{run.seconds / first.seconds:.2f} of the present row's time on {call.case}"
    return None


@functools.lru_cache(maxsize=256)
def _spills(kernel: CompiledKernel) -> bool:
    # Not the size of local memory that a driver tells: on some GPUs it is never 0.
    return read_facts(kernel).local > 0


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _last_line(traceback: str) -> str:
    return traceback.strip().splitlines()[-1]
