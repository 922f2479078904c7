"""The results as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qwell.bench.machine import cpu_name
from qwell.bench.serving.load import Load
from qwell.bench.serving.memory import Memory
from qwell.bench.serving.results import Figures, Limits, Percentiles, Ratios, Run
from qwell.bench.serving.run import Plan
from qwell.bench.serving.servers import Server
from qwell.bench.text_table import NONE, aligned

_HEADING = (
    "load",
    "server",
    "answered",
    "req/s",
    "tok/s",
    "good req/s",
    "TTFT ms",
    "ITL ms",
    "longest gap ms",
    "E2E ms",
)
_RATIO_HEADING = ("load", "tok/s", "TTFT p50", "ITL p50", "E2E p50")
_MEMORY_HEADING = (
    "load",
    "server",
    "start: resident MB",
    "anonymous",
    "highest: resident MB",
    "anonymous",
)


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """A load on each server, of all runs together, with the runs themselves.

    Attributes:
        figures: by server.
        ratios: the first server's to the second's; None of one server.
    """

    load: Load
    figures: dict[str, Figures]
    ratios: Ratios | None
    runs: list[Run]

    @property
    def memory(self) -> dict[str, list[Memory]]:
        """By server, of the runs that tell."""
        found: dict[str, list[Memory]] = {}
        for run in self.runs:
            if run.memory is not None:
                found.setdefault(run.server, []).append(run.memory)
        return found


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured, and on what."""

    cpu: str
    servers: dict[str, str]
    plan: Plan
    limits: Limits
    loads: list[LoadReport]

    @classmethod
    def of(
        cls, servers: Sequence[Server], plan: Plan, limits: Limits, runs: Sequence[Run]
    ) -> Report:
        """The results of one call."""
        names = [server.name for server in servers]
        return cls(
            cpu=cpu_name(),
            servers={server.name: server.what for server in servers},
            plan=plan,
            limits=limits,
            loads=[
                _load_report(load, names, limits, [run for run in runs if run.load == load])
                for load in plan.loads
            ],
        )

    def text(self) -> str:
        """Tables: percentiles are p50 / p90 / p99."""
        rows = [
            _cells(report.load, name, figures)
            for report in self.loads
            for name, figures in report.figures.items()
        ]
        turns = max(
            len(row.first_token_by_turn) for report in self.loads for row in report.figures.values()
        )
        turn_rows = [
            (str(report.load), name, *map(_milliseconds, figures.first_token_by_turn))
            for report in self.loads
            for name, figures in report.figures.items()
            if turns > 1 and len(figures.first_token_by_turn) == turns
        ]
        ratio_rows = [
            (str(report.load), *_ratio_cells(report.ratios))
            for report in self.loads
            if report.ratios is not None
        ]
        memory_rows = [
            (str(report.load), name, *_memory_cells(seen))
            for report in self.loads
            for name, seen in report.memory.items()
        ]
        lines = [
            *aligned(_HEADING, rows)[1:],
            *self._errors(),
            *aligned(
                ("load", "server", *(f"TTFT ms, turn {n + 1}" for n in range(turns))), turn_rows
            ),
            *aligned(_RATIO_HEADING, ratio_rows),
            *aligned(_MEMORY_HEADING, memory_rows),
        ]
        return "\n".join(lines)

    def _errors(self) -> list[str]:
        return [
            f"{report.load}, {name}: "
            + ", ".join(f"{n} x {kind}" for kind, n in figures.errors.items())
            for report in self.loads
            for name, figures in report.figures.items()
            if figures.errors
        ]


def _load_report(load: Load, names: Sequence[str], limits: Limits, runs: list[Run]) -> LoadReport:
    by_server = {name: [run for run in runs if run.server == name] for name in names}
    ratios = None
    if len(names) == 2:
        pairs = zip(*(by_server[name] for name in names), strict=True)
        ratios = Ratios.of([(_figures([a], limits), _figures([b], limits)) for a, b in pairs])
    return LoadReport(
        load=load,
        figures={name: _figures(of_server, limits) for name, of_server in by_server.items()},
        ratios=ratios,
        runs=runs,
    )


def _figures(runs: Sequence[Run], limits: Limits) -> Figures:
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    return Figures.of(outcomes, sum(run.seconds for run in runs), limits)


def _cells(load: Load, server: str, figures: Figures) -> tuple[str, ...]:
    return (
        str(load),
        server,
        f"{figures.succeeded} of {figures.requests}",
        f"{figures.request_rate:.2f}",
        f"{figures.output_tokens_per_second:.1f}",
        f"{figures.goodput:.2f}",
        _milliseconds(figures.first_token),
        _milliseconds(figures.between_tokens),
        _milliseconds(figures.longest_gap),
        _milliseconds(figures.total),
    )


def _milliseconds(seconds: Percentiles | None) -> str:
    if seconds is None:
        return NONE
    return " / ".join(f"{1e3 * value:.0f}" for value in (seconds.p50, seconds.p90, seconds.p99))


def _ratio_cells(ratios: Ratios) -> list[str]:
    spreads = (
        ratios.output_tokens_per_second,
        ratios.first_token,
        ratios.between_tokens,
        ratios.total,
    )
    return [NONE if spread is None else spread.text(2) for spread in spreads]


def _memory_cells(seen: Sequence[Memory]) -> list[str]:
    return [
        f"{most / 1e6:.0f}"
        for most in (
            max(memory.start.resident for memory in seen),
            max(memory.start.anonymous for memory in seen),
            max(memory.highest.resident for memory in seen),
            max(memory.highest.anonymous for memory in seen),
        )
    ]
