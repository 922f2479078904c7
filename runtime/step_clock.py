"""What the parts of steps take."""

from __future__ import annotations

from collections.abc import Callable


class StepClock:
    """Sums seconds by part.

    Attributes:
        sums: seconds of every part since the start; the last part is "rest".
        step_s: seconds of the step that ended last.
        step_start: when the last step began.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.step_start = self._part_start = clock()
        self.sums = dict.fromkeys(("schedule", "forward", "sample", "rest"), 0.0)
        self.step_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self.step_start = self._part_start = self._clock()

    def ended(self, part: str) -> None:
        """A part ends, and the next begins."""
        now = self._clock()
        self.sums[part] += now - self._part_start
        self._part_start = now
        self.step_s = now - self.step_start

    def since(self, start: float) -> float:
        """Seconds that have passed since then."""
        return self._clock() - start
