"""A mixed load for as long as one likes: nothing may be lost, wrong, or kept in memory."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from qwell.bench.serving.http_client import Address, ServingError, request
from qwell.bench.serving.memory import MemoryWatch
from qwell.bench.serving.prompts import Lengths, conversations

PATIENCE_S = 120.0
"""Longest wait for an answer; then it counts as lost."""

MOST_GROWTH = 0.02
"""Of memory, as a share."""

_PATH = "/v1/completions"
_CASES = 10
_WARM_UP_SHARE = 0.25
_LONGEST_STAY_S = 1.0
# Each is answered with 400.
_BAD_BODIES: tuple[Any, ...] = (
    [],
    {"model": "m"},
    {"model": "m", "prompt": "x", "no_such_field": 1},
    {"model": "m", "prompt": "x", "temperature": 9},
    {"model": "m", "prompt": "x", "max_tokens": 2**31 - 1},
)


class _Choice(msgspec.Struct):
    text: str


class _Completion(msgspec.Struct):
    choices: list[_Choice]


_decoder = msgspec.json.Decoder(_Completion)


@dataclass(frozen=True)
class Case:
    """A request, and the text that it gets when it is alone."""

    body: dict[str, Any]
    text: str


@dataclass
class Soak:
    """What came of it.

    Attributes:
        requests: how many of each kind were answered as they should be, or left unanswered by
            their client.
        faults: what went wrong, a sentence each.
        anonymous: bytes of all processes once they were warm, second by second.
    """

    requests: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Of the memory, from the first quarter of the time to the last: medians, as a share."""
        return growth(self.anonymous)

    @property
    def passed(self) -> bool:
        """No faults, and no growth to speak of."""
        return not self.faults and self.growth < MOST_GROWTH


class _Fault(Exception):  # noqa: N818 (no error of this program)
    pass


async def soak(
    address: Address,
    pid: int,
    seconds: float,
    clients: int,
    seed: int,
    say: Callable[[str], None],
) -> Soak:
    """Keep a server busy for so long; the first quarter is for it to get warm.

    Prompts of many lengths, whole answers and streams, clients that leave in the middle, and
    requests that are wrong, at random. All texts must be those that each request gets alone,
    before and after.

    Args:
        pid: the server's process.
        say: gets a line on how it goes, every minute.

    Raises ServingError if the server does not answer even single requests.
    """
    result = Soak()
    cases = [Case(body, await _alone(address, body)) for body in _bodies(seed)]
    # All at once: steps as large as any, so that what they take is there before the first look.
    await asyncio.gather(*(_count(result, "crowd", _whole(address, c)) for c in cases * clients))
    async with MemoryWatch(pid) as watch:
        end = time.monotonic() + seconds
        running = [
            asyncio.create_task(_client(address, cases, random.Random(f"{seed} {n}"), end, result))
            for n in range(clients)
        ]
        await asyncio.sleep(_WARM_UP_SHARE * seconds)
        warm = len(watch.seen)
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(60.0, left))
            say(_state(result, watch))
        await asyncio.gather(*running)
    result.anonymous = [usage.anonymous for usage in watch.seen[warm:]]
    for case in cases:
        await _count(result, "alone again", _whole(address, case))
    return result


def growth(amounts: Sequence[int]) -> float:
    """From the first quarter to the last, by their medians, as a share; 0 of nothing."""
    quarter = max(1, len(amounts) // 4)
    if not amounts:
        return 0.0
    return statistics.median(amounts[-quarter:]) / statistics.median(amounts[:quarter]) - 1


def _bodies(seed: int) -> list[dict[str, Any]]:
    lengths = Lengths(input_tokens=80, output_tokens=24, spread=0.95)
    asked = conversations("random", lengths, _CASES, f"soak {seed}")
    return [
        {
            "model": "m",
            "prompt": turn.text,
            "max_tokens": turn.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        for turn in (conversation.turns[0] for conversation in asked)
    ]


async def _client(
    address: Address, cases: Sequence[Case], draw: random.Random, end: float, result: Soak
) -> None:
    while time.monotonic() < end:
        case = draw.choice(cases)
        kind = draw.choice(("whole", "whole", "stream", "stream", "left", "left stream", "bad"))
        if kind == "whole":
            asked: Awaitable[None] = _whole(address, case)
        elif kind == "stream":
            asked = _stream(address, case)
        elif kind == "left":
            asked = _left(address, case, draw.uniform(0, _LONGEST_STAY_S))
        elif kind == "left stream":
            asked = _stream(address, case, most_events=draw.randrange(8))
        else:
            asked = _bad(address, draw.choice(_BAD_BODIES))
        await _count(result, kind, asked)


async def _count(result: Soak, kind: str, asked: Awaitable[None]) -> None:
    try:
        await asyncio.wait_for(asked, PATIENCE_S)
        result.requests[kind] += 1
    except _Fault as fault:
        result.faults.append(f"{kind}: {fault}")
    except asyncio.TimeoutError:
        result.faults.append(f"{kind}: no answer in {PATIENCE_S:.0f} s")
    except (OSError, EOFError, ValueError) as error:
        result.faults.append(f"{kind}: {error or type(error).__name__}")


async def _alone(address: Address, body: dict[str, Any]) -> str:
    async with request(address, "POST", _PATH, msgspec.json.encode(body)) as answer:
        content = await answer.body()
        if answer.status != 200:
            raise ServingError(f"{address} answers a single request with {answer.status}")
        return _text(content)


async def _whole(address: Address, case: Case) -> None:
    async with request(address, "POST", _PATH, msgspec.json.encode(case.body)) as answer:
        content = await answer.body()
        _expect_status(answer.status, 200)
        _expect_text(_text(content), case)


async def _left(address: Address, case: Case, seconds: float) -> None:
    """Go away after so long, if the answer is not there before."""
    try:
        await asyncio.wait_for(_whole(address, case), seconds)
    except asyncio.TimeoutError:
        return


async def _stream(address: Address, case: Case, most_events: int | None = None) -> None:
    """Read a stream to its end, or go away after so many events."""
    body = {**case.body, "stream": True}
    text = ""
    async with request(address, "POST", _PATH, msgspec.json.encode(body)) as answer:
        _expect_status(answer.status, 200)
        async for piece in _pieces(answer.events(), most_events):
            text += piece
            if not case.text.startswith(text):
                raise _Fault(f"{text!r} is not how {case.text!r} begins")
    if most_events is None:
        _expect_text(text, case)


async def _pieces(events: AsyncIterator[bytes], most: int | None) -> AsyncIterator[str]:
    count = 0
    async for data in events:
        if data == b"[DONE]" or count == most:
            return
        count += 1
        yield _text(data)
    raise EOFError("the stream ended before its end")


async def _bad(address: Address, body: Any) -> None:
    async with request(address, "POST", _PATH, msgspec.json.encode(body)) as answer:
        await answer.body()
        _expect_status(answer.status, 400)


def _text(data: bytes) -> str:
    """Of an answer or an event. Raises ValueError for what is neither, as an error is."""
    return "".join(choice.text for choice in _decoder.decode(data).choices)


def _expect_status(status: int, expected: int) -> None:
    if status != expected:
        raise _Fault(f"status {status} instead of {expected}")


def _expect_text(text: str, case: Case) -> None:
    if text != case.text:
        raise _Fault(f"{text!r} instead of {case.text!r}")


def _state(result: Soak, watch: MemoryWatch) -> str:
    return (
        f"{result.requests.total()} requests, {len(result.faults)} faults, "
        f"{watch.seen[-1].anonymous / 1e6:.0f} MB anonymous"
    )
