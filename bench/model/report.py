"""The results as text and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec
import torch

from qwell.bench.machine import cpu_name
from qwell.bench.model.cases import Case
from qwell.bench.model.peer import Peer
from qwell.bench.model.results import CaseResult, Figures, WeightsResult
from qwell.bench.text_table import NONE, aligned
from qwell.kernels.native.runner import choose_isa
from qwell.runtime.engine_options import EngineOptions

HEADING = (
    "case",
    "tok/s",
    "MB/token",
    "of bandwidth",
    "of FMA",
    "resident MB",
    "peer tok/s",
    "ratio",
)


class CaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """A case with what follows from its runs, so that a reader of the JSON need not compute."""

    result: CaseResult
    figures: Figures


class WeightsReport(msgspec.Struct, frozen=True, kw_only=True):
    """A format of weights, and its cases."""

    weights: str
    first_token_seconds: float
    dtype: str
    weight_bytes: int
    cache_bytes: int
    cases: list[CaseReport]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured, and on what."""

    cpu: str
    isa: str
    torch: str
    options: EngineOptions
    peer: list[str] | None
    weights: list[WeightsReport]

    @classmethod
    def of(
        cls, options: EngineOptions, peer: Peer | None, results: Sequence[WeightsResult]
    ) -> Report:
        """The results of one call."""
        return cls(
            cpu=cpu_name(),
            isa=choose_isa(options.isa),
            torch=str(torch.__version__),
            options=options,
            peer=None if peer is None else peer.command,
            weights=[
                WeightsReport(
                    weights=result.weights,
                    first_token_seconds=result.first_token_seconds,
                    dtype=result.started.dtype,
                    weight_bytes=result.started.weight_bytes,
                    cache_bytes=result.started.cache_bytes,
                    cases=[CaseReport(result=c, figures=c.figures()) for c in result.cases],
                )
                for result in results
            ],
        )


def heading(options: EngineOptions) -> str:
    """The model and the machine, in a line each."""
    machine = f"{cpu_name()}, {choose_isa(options.isa)}, {options.threads} threads"
    return f"{options.model}\n{machine}, torch {torch.__version__}"


def weights_table(result: WeightsResult) -> str:
    """A format of weights: how it started, a line for each case, the ceilings beside them."""
    started = result.started
    runs = [run for case in result.cases for run in case.runs]
    bandwidth = statistics.median(run.ceilings.bandwidth for run in runs)
    flops = statistics.median(run.ceilings.flops for run in runs)
    lines = [
        "",
        f"{result.weights}: {started.weight_bytes / 1e6:.0f} MB of weights, "
        f"{started.cache_bytes / 1e6:.0f} MB of cache, "
        f"first token after {result.first_token_seconds:.1f} s; the machine reads "
        f"{bandwidth / 1e9:.1f} GB/s and computes {flops / 1e9:.0f} GFLOP/s",
        *aligned(HEADING, [_cells(case) for case in result.cases])[1:],
    ]
    return "\n".join(lines)


def _cells(result: CaseResult) -> tuple[str, ...]:
    figures = result.figures()
    resident = figures.resident_bytes
    peer = figures.peer_tokens_per_second
    return (
        _name(result.case),
        figures.tokens_per_second.text(1),
        f"{figures.bytes_per_token / 1e6:.1f}",
        f"{figures.bandwidth_share:.0%}",
        f"{figures.flops_share:.0%}",
        NONE if resident is None else f"{resident / 1e6:.0f}",
        result.peer_refusal or NONE if peer is None else peer.text(1),
        NONE if figures.ratio is None else figures.ratio.text(2),
    )


def _name(case: Case) -> str:
    sequences = f" x {case.batch}" if case.batch > 1 else ""
    return f"{case.phase} {case.tokens}{sequences} at {case.depth}"
