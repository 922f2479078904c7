"""Sections of the run in processes of their own, under a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from qwell.bench.gpu.attempt import Failure, attempt
from qwell.bench.gpu.kernels import KernelTime
from qwell.bench.gpu.model_parity import LogitsParity
from qwell.bench.gpu.model_speed import Speed
from qwell.bench.gpu.parity import Parity
from qwell.bench.gpu.serving import Throughput
from qwell.bench.work import Ceilings

Row = Ceilings | Parity | LogitsParity | KernelTime | Speed | Throughput


@dataclass(frozen=True)
class Section:
    """A part of the run.

    Attributes:
        rows: measures, given the ceilings; runs in the section's process.
        limit_seconds: after which the process is ended.
    """

    name: str
    rows: Callable[[Ceilings], Iterator[Row]]
    limit_seconds: float


@dataclass
class Outcome:
    """What came of a section.

    Attributes:
        rows: all that it measured before it ended, however it ended.
        failure: traceback, or the status of a process that died.
        out_of_time: it was ended at its limit.
    """

    name: str
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    failure: str | None = None
    out_of_time: bool = False


def run_isolated(
    section: Section,
    outcome: Outcome,
    ceilings: Ceilings,
    processes: BaseContext,
    keep: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a section; every way in which it can end is an outcome.

    A kernel that reads where it must not breaks the GPU for its process, and one that hangs
    cannot be interrupted: the other sections have processes of their own.

    Args:
        section: what to run.
        outcome: what becomes of it, which is returned.
        ceilings: what it judges by.
        processes: where processes come from.
        keep: called after every row, with the outcome so far.
    """
    receiver, sender = processes.Pipe(duplex=False)
    # Stubs give a context no Process: it is a class attribute of the concrete ones.
    process = processes.Process(target=_measure, args=(sender, section, ceilings))  # type: ignore[attr-defined]
    start = time.monotonic()
    process.start()
    sender.close()  # so that the end of the process ends the stream
    try:
        _receive(receiver, outcome, start + section.limit_seconds, keep)
    except EOFError:
        process.join()
        outcome.failure = f"the process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()
        outcome.seconds = time.monotonic() - start
    return outcome


def _receive(
    receiver: Connection, outcome: Outcome, deadline: float, keep: Callable[[], None]
) -> None:
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        message = receiver.recv()
        if message is None:
            return
        if isinstance(message, Failure):
            outcome.failure = message.text
            return
        outcome.rows.append(message)
        keep()
    outcome.out_of_time = True


def _measure(sender: Connection, section: Section, ceilings: Ceilings) -> None:
    """In the section's process: send every row as it comes, then None or a Failure."""

    def send_rows() -> None:
        for row in section.rows(ceilings):
            sender.send(row)

    sender.send(attempt(send_rows))
