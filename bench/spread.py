"""Several measurements of one thing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Of several measurements of one thing."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """Like 1.50 (1.40-1.70)."""
        least, median, most = (
            f"{value:.{digits}f}" for value in (self.least, self.median, self.most)
        )
        return f"{median} ({least}-{most})"
