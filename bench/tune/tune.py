"""The search for better rows of the launch tables of an op."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwell.bench.tune.space import Space
from qwell.bench.tune.trial import Rig, Trial, try_rows
from qwell.bench.tune.write import write_row

MARGIN = 0.03
"""Part of the present row's time that a new one must save, or both count as equally fast."""


@dataclass(frozen=True)
class Tuned:
    """What came of a row of a table.

    Attributes:
        place: of the row among those of the architecture, from 0.
        trials: the present row, then all that were tried in its place.
        chosen: what now stands in the table instead, or None.
        ratio: of its time to that of the row before.
    """

    space: Space
    place: int
    trials: Sequence[Trial]
    chosen: Any = None
    ratio: float = 1.0


def tune(rig: Rig, spaces: Sequence[Space], measured_on: str) -> Iterator[Tuned]:
    """Tune the tables one by one, each row with the tuned ones before it in place.

    A better row is written to its file at once, with what it was measured on.
    """
    for space in spaces:
        for place in range(len(space.rows(rig.arch))):
            tuned = _tune_row(rig, space, place)
            if tuned.chosen is not None:
                rows = list(space.rows(rig.arch))
                rows[place] = tuned.chosen
                space.table[rig.arch] = tuple(rows)
                why = f"{measured_on}: {tuned.ratio:.2f} of the time of the row before"
                write_row(space.file, space.name, rig.arch, place, tuned.chosen, why)
            yield tuned


def _tune_row(rig: Rig, space: Space, place: int) -> Tuned:
    row = space.rows(rig.arch)[place]
    trials = try_rows(rig, space, place, space.candidates(rig.arch, row))
    found = _faster(trials)
    if found is not None:
        # Once more: the best of many measurements is also the luckiest.
        found = _faster(try_rows(rig, space, place, [row, found.row]))
    if found is None:
        return Tuned(space, place, trials)
    return Tuned(space, place, trials, found.row, found.ratio)


class _Found(NamedTuple):
    row: Any
    ratio: float


def _faster(trials: Sequence[Trial]) -> _Found | None:
    """The fastest row, unless it is not that much faster than the first or the first failed."""
    present = trials[0]
    if present.refusal:
        return None
    best = min((t for t in trials if t.refusal is None), key=lambda t: t.microseconds)
    ratio = best.microseconds / present.microseconds
    return _Found(best.row, ratio) if ratio <= 1 - MARGIN else None
