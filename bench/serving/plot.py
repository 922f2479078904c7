"""Latency against load, as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qwell.bench.serving.http_client import ServingError
from qwell.bench.serving.report import LoadReport, Report
from qwell.bench.serving.results import Figures, Percentiles

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter
except ImportError as error:
    raise ServingError(
        "--plot needs matplotlib, which is not installed: pip install 'qwell[bench]'"
    ) from error

_STYLES = {"p50": "-", "p90": "--", "p99": ":"}
_PANELS: tuple[tuple[str, Callable[[Figures], Percentiles | None]], ...] = (
    ("TTFT", lambda figures: figures.first_token),
    ("ITL", lambda figures: figures.between_tokens),
    ("E2E", lambda figures: figures.total),
)


def plot(report: Report, path: Path) -> None:
    """A panel for each latency: percentiles of each server against the load, to `path`.

    Raises OSError or ServingError if it cannot be written there.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, latency) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for color, server in zip(("C0", "C1"), report.servers, strict=False):
            for percentile, style in _STYLES.items():
                points = _points(report.loads, server, latency, percentile)
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    marker=".",
                    color=color,
                    label=f"{server} {percentile}",
                )
        axes.set(title=name, xlabel=_x_name(report), ylabel="ms", yscale="log")
        # Plain numbers: the default writes 300 as 3 x 10^2.
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.grid(alpha=0.3, which="both")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise ServingError(f"{path}: {error}") from error


def _points(
    loads: list[LoadReport],
    server: str,
    latency: Callable[[Figures], Percentiles | None],
    percentile: str,
) -> list[tuple[float, float]]:
    points = []
    for report in loads:
        found = latency(report.figures[server])
        if found is not None:
            points.append((_x(report), 1e3 * getattr(found, percentile)))
    return points or [(0.0, float("nan"))]


def _x(report: LoadReport) -> float:
    load = report.load
    return load.rate if load.rate is not None else float(load.clients or 0)


def _x_name(report: Report) -> str:
    return "clients" if report.loads[0].load.rate is None else "arrivals a second"
