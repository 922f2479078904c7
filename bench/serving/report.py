"""The results as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from qwell.bench.machine import cpu_name
from qwell.bench.serving.load import Load
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
    "client CPU",
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
        figures, runs: by server.
        ratios: the first server's to the second's; None of one server.
    """

    load: Load
    figures: dict[str, Figures]
    ratios: Ratios | None
    runs: dict[str, list[Run]]

    @classmethod
    def of(cls, load: Load, runs: dict[str, list[Run]], limits: Limits) -> LoadReport:
        """Of the runs of each server; they alternated."""
        ratios = None
        if len(runs) == 2:
            pairs = zip(*runs.values(), strict=True)
            ratios = Ratios.of([(_figures([a], limits), _figures([b], limits)) for a, b in pairs])
        figures = {name: _figures(of_server, limits) for name, of_server in runs.items()}
        return cls(load=load, figures=figures, ratios=ratios, runs=runs)

    @property
    def turns(self) -> int:
        """Of a conversation, as far as any came."""
        return max(len(figures.first_token_by_turn) for figures in self.figures.values())


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
                LoadReport.of(load, {name: _of(runs, name, load) for name in names}, limits)
                for load in plan.loads
            ],
        )

    def text(self) -> str:
        """Tables: percentiles are p50 / p90 / p99."""
        turns = max(report.turns for report in self.loads)
        numbers = range(1, turns + 1) if turns > 1 else ()
        names = [f"TTFT {{}}turn {number}" for number in numbers]
        lines = [
            *aligned(_HEADING, [_cells(*row) for row in self._rows()])[1:],
            *(line for row in self._rows() for line in _error_line(*row)),
            *aligned(
                (
                    "load",
                    "server",
                    *(name.format("ms, ") for name in names),
                    *(f"cached, turn {number}" for number in numbers),
                ),
                [_turn_cells(*row, turns) for row in self._rows() if turns > 1],
            ),
            *aligned(
                (*_RATIO_HEADING, *(name.format("p50, ") for name in names)),
                [
                    (str(report.load), *_ratio_cells(report.ratios, len(names)))
                    for report in self.loads
                    if report.ratios is not None
                ],
            ),
            *aligned(
                _MEMORY_HEADING, [cells for row in self._rows() for cells in _memory_cells(*row)]
            ),
        ]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[LoadReport, str]]:
        return [(report, name) for report in self.loads for name in report.figures]


def _of(runs: Sequence[Run], server: str, load: Load) -> list[Run]:
    return [run for run in runs if run.server == server and run.load == load]


def _figures(runs: Sequence[Run], limits: Limits) -> Figures:
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    return Figures.of(outcomes, sum(run.seconds for run in runs), limits)


def _cells(report: LoadReport, server: str) -> tuple[str, ...]:
    figures, runs = report.figures[server], report.runs[server]
    return (
        str(report.load),
        server,
        f"{figures.succeeded} of {figures.requests}",
        f"{figures.request_rate:.2f}",
        f"{figures.output_tokens_per_second:.1f}",
        f"{figures.goodput:.2f}",
        _milliseconds(figures.first_token),
        _milliseconds(figures.between_tokens),
        _milliseconds(figures.longest_gap),
        _milliseconds(figures.total),
        f"{sum(run.client_seconds for run in runs) / sum(run.seconds for run in runs):.0%}",
    )


def _error_line(report: LoadReport, server: str) -> list[str]:
    errors = report.figures[server].errors
    kinds = ", ".join(f"{count} x {kind}" for kind, count in errors.items())
    return [f"{report.load}, {server}: {kinds}"] if errors else []


def _turn_cells(report: LoadReport, server: str, turns: int) -> list[str]:
    figures = report.figures[server]
    latencies = [_milliseconds(turn) for turn in figures.first_token_by_turn]
    cached = [f"{share:.0%}" for share in figures.cached_by_turn]
    return [str(report.load), server, *_filled(latencies, turns), *_filled(cached, turns)]


def _milliseconds(seconds: Percentiles | None) -> str:
    if seconds is None:
        return NONE
    return " / ".join(f"{1e3 * value:.0f}" for value in (seconds.p50, seconds.p90, seconds.p99))


def _ratio_cells(ratios: Ratios, turns: int) -> list[str]:
    whole = [
        ratios.output_tokens_per_second,
        ratios.first_token,
        ratios.between_tokens,
        ratios.total,
    ]
    by_turn = ratios.first_token_by_turn[:turns]
    cells = [NONE if spread is None else spread.text(2) for spread in (*whole, *by_turn)]
    return _filled(cells, len(whole) + turns)


def _filled(cells: list[str], count: int) -> list[str]:
    return [*cells, *[NONE] * (count - len(cells))]


def _memory_cells(report: LoadReport, server: str) -> list[tuple[str, ...]]:
    """The most of all runs; nothing of a server that was not started for them."""
    seen = [run.memory for run in report.runs[server] if run.memory is not None]
    if not seen:
        return []
    amounts = (
        max(memory.start.resident for memory in seen),
        max(memory.start.anonymous for memory in seen),
        max(memory.highest.resident for memory in seen),
        max(memory.highest.anonymous for memory in seen),
    )
    return [(str(report.load), server, *(f"{amount / 1e6:.0f}" for amount in amounts))]
