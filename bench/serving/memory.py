"""Memory of a server and the processes it started, as Linux counts it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec

_INTERVAL_S = 1.0


class Usage(msgspec.Struct, frozen=True):
    """Bytes of all processes together; a page that two of them map counts twice.

    Attributes:
        resident: in memory, mapped files included.
        anonymous: the part of it that no file backs: what was allocated, and written to.
    """

    resident: int
    anonymous: int


class Memory(msgspec.Struct, frozen=True):
    """When a load began, and at its highest until it ended."""

    start: Usage
    highest: Usage


def memory_of(pid: int) -> Usage:
    """Of a process and its descendants. Raises OSError where Linux does not tell."""
    resident = anonymous = 0
    for process in _tree(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, amount = line.partition(":")
            if name == "Rss":
                resident += int(amount.split()[0]) * 1024
            elif name == "Anonymous":
                anonymous += int(amount.split()[0]) * 1024
    return Usage(resident, anonymous)


class MemoryWatch:
    """Looks at a process's memory each second, from the start of an `async with` block to its end.

    Attributes:
        seen: every look, in order.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.seen: list[Usage] = []

    async def __aenter__(self) -> MemoryWatch:
        self.seen.append(memory_of(self._pid))
        self._task = asyncio.create_task(self._look_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self.seen.append(memory_of(self._pid))

    @property
    def memory(self) -> Memory:
        """Of the looks so far."""
        highest = Usage(
            max(usage.resident for usage in self.seen), max(usage.anonymous for usage in self.seen)
        )
        return Memory(self.seen[0], highest)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self.seen.append(memory_of(self._pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _tree(int(child))
