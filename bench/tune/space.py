"""What may be tried in a launch table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from qwell.bench.gpu.calls import Calls, Step
from qwell.kernels.triton.configs.table_file import table_file


@dataclass(frozen=True)
class Load:
    """Calls that one row of a table serves: those of a step.

    Attributes:
        needs: the least that the row's limits must be.
        cases: of the step's calls, those count whose case ends so.
    """

    needs: Mapping[str, int]
    dtype: torch.dtype
    step: Step
    cases: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Space:
    """A launch table, what may stand in place of its rows, and what to try that on.

    Rows are named tuples of the table's module.

    Attributes:
        op: that it is tuned for.
        config: the table's module.
        choices: values of the fields that may change.
        keeps: whether a row for an architecture is as the module asks.
        same_bits: rows must not differ in the bits of a result.
        loads: for all rows of an architecture.
        name: of the table in its module.
        shared_by: ops that launch with the table, where `op` is no op but a name for them all.
        calls: makes the calls of the ops.
    """

    op: str
    config: ModuleType
    choices: Mapping[str, Sequence[Any]]
    keeps: Callable[[str, Any], bool]
    same_bits: bool
    loads: Callable[[Sequence[Any]], Iterator[Load]]
    name: str = "ROWS"
    shared_by: tuple[str, ...] = ()
    calls: type[Calls] = Calls

    @property
    def ops(self) -> tuple[str, ...]:
        """Whose launches the table is for."""
        return self.shared_by or (self.op,)

    @property
    def file(self) -> Path:
        """Where the table is written down."""
        return table_file(str(self.config.__file__))

    @property
    def table(self) -> dict[str, tuple[Any, ...]]:
        """Rows by architecture: the ones that lookups read, so that changing them counts."""
        table: dict[str, tuple[Any, ...]] = getattr(self.config, self.name)
        return table

    def rows(self, arch: str) -> tuple[Any, ...]:
        """The rows that serve an architecture."""
        return self.table.get(arch, self.table["default"])

    def candidates(self, arch: str, row: Any) -> list[Any]:
        """A row, then what may stand in its place."""
        every = (
            row._replace(**dict(zip(self.choices, values, strict=True)))
            for values in itertools.product(*self.choices.values())
        )
        return [row, *(other for other in every if other != row and self.keeps(arch, other))]

    def loads_of(self, arch: str, place: int) -> Iterator[Load]:
        """Loads that the row at `place` serves: those that no row before it does."""
        rows = self.rows(arch)
        return (load for load in self.loads(rows) if _place(rows, load) == place)


def _place(rows: Sequence[Any], load: Load) -> int:
    return next(
        place
        for place, row in enumerate(rows)
        if all(getattr(row, limit) >= least for limit, least in load.needs.items())
    )
