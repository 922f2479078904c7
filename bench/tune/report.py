"""What tuning a row came to, as text."""

from __future__ import annotations

from collections.abc import Sequence

from qwell.bench.tune.trial import Trial
from qwell.bench.tune.tune import MARGIN, Tuned


def table(tuned: Tuned, arch: str) -> str:
    """All that was tried, the fastest first, then what was refused; a line each, and the end."""
    present, *_ = tuned.trials
    served = [trial for trial in tuned.trials if trial.refusal is None]
    refused = [trial for trial in tuned.trials if trial.refusal is not None]
    served.sort(key=lambda trial: trial.microseconds)
    heading = (*present.row._fields, "us", "ratio", "")
    lines = [
        heading,
        *(_cells(trial, present) for trial in served),
        *((*_settings(trial), "", "", str(trial.refusal)) for trial in refused),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    space = tuned.space
    rows = len(space.rows(arch))
    title = f"{space.op}: {space.file.stem} {space.name} {arch}, row {tuned.place + 1} of {rows}"
    return "\n".join([title, *(_aligned(line, widths) for line in lines), _end(tuned), ""])


def _settings(trial: Trial) -> list[str]:
    return [str(value) for value in trial.row]


def _cells(trial: Trial, present: Trial) -> tuple[str, ...]:
    ratio = trial.microseconds / present.microseconds
    note = "present" if trial is present else ""
    return (*_settings(trial), f"{trial.microseconds:.2f}", f"{ratio:.3f}", note)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    *numbers, note = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join([*numbers, note.strip()]).rstrip()


def _end(tuned: Tuned) -> str:
    if tuned.trials[0].refusal is not None:
        return "left alone: the present row fails"
    if tuned.chosen is None:
        return f"left alone: no other row saves {MARGIN:.0%}, measured twice"
    return f"{tuned.space.file}: {tuned.chosen}, {tuned.ratio:.3f} of the time"
