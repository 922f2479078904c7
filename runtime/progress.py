"""How far many requests are: a line on stderr. Torch-free."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_BAR = 24
_REDRAW_S = 0.1
_LINE_S = 30.0


class Progress:
    """Share done, tokens a second and time left, for as long as a `with` block lasts.

    On a terminal one line is redrawn; elsewhere, in a log, a line is written every half minute.
    The last line sums up.

    Args:
        total: requests.
        done: of them, before: time left is computed from the others.
        stream: where it goes; stderr by default.
    """

    def __init__(
        self,
        total: int,
        done: float = 0.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._before = done
        self._done = 0.0
        self._tokens = 0
        self._stream = sys.stderr if stream is None else stream
        self._redraws = self._stream.isatty()
        self._clock = clock
        self._start = self._shown = clock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show(f"{self._state()} in {_duration(self._seconds)}", end="\n")

    def advance(self, *, requests: float, tokens: int) -> None:
        """Count what was done; `requests` may be a part of one."""
        self._done += requests
        self._tokens += tokens
        now = self._clock()
        if now - self._shown >= (_REDRAW_S if self._redraws else _LINE_S):
            self._shown = now
            self._show(f"{self._state()}, {self._left()} left", end="" if self._redraws else "\n")

    @property
    def _seconds(self) -> float:
        return self._clock() - self._start

    def _state(self) -> str:
        share = min(1.0, (self._before + self._done) / max(self._total, 1))
        rate = self._tokens / max(self._seconds, 1e-9)
        state = f"{share:4.0%} of {self._total} requests, {rate:.1f} tok/s"
        if not self._redraws:
            return state.strip()
        filled = round(share * _BAR)
        return f"[{'#' * filled}{'.' * (_BAR - filled)}] {state}"

    def _left(self) -> str:
        if self._done <= 0.0:
            return "unknown time"
        left = max(0.0, self._total - self._before - self._done)
        return _duration(self._seconds * left / self._done)

    def _show(self, line: str, end: str) -> None:
        # The rest of a longer line before is erased.
        start, erase = ("\r", "\033[K") if self._redraws else ("", "")
        self._stream.write(f"{start}{line}{erase}{end}")
        self._stream.flush()


def _duration(seconds: float) -> str:
    """Like 0:07, 2:05 or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
