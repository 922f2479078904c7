"""The line that says how far a batch is."""

from __future__ import annotations

import io

from qwell.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_has_one_line_redrawn() -> None:
    screen, clock = Terminal(), Clock()
    with Progress(8, stream=screen, clock=clock) as progress:
        for _ in range(4):
            clock.now += 50.0
            progress.advance(requests=1.5, tokens=1000)
        clock.now += 0.001
        progress.advance(requests=2.0, tokens=0)
    *redrawn, last = screen.getvalue().removeprefix("\r").split("\r")

    assert len(redrawn) == 4
    assert redrawn[1].startswith(
        "[#########...............]  38% of 8 requests, 20.0 tok/s, 2:47 left"
    )
    assert "100% of 8 requests" in last
    assert last.endswith(" in 3:20\033[K\n")


def test_a_log_has_a_line_now_and_then() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(100, done=50, stream=log, clock=clock) as progress:
        for _ in range(50):
            clock.now += 1.5
            progress.advance(requests=1, tokens=3)

    assert log.getvalue().splitlines() == [
        "70% of 100 requests, 2.0 tok/s, 0:45 left",
        "90% of 100 requests, 2.0 tok/s, 0:15 left",
        "100% of 100 requests, 2.0 tok/s in 1:15",
    ]


def test_nothing_done_yet() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(2, stream=log, clock=clock) as progress:
        clock.now += 4000.0
        progress.advance(requests=0, tokens=0)
    assert log.getvalue().splitlines() == [
        "0% of 2 requests, 0.0 tok/s, unknown time left",
        "0% of 2 requests, 0.0 tok/s in 1:06:40",
    ]
