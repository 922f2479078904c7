"""Events that wait to be read: in order, and in bounded space where the reader is behind."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeGuard

from qwell.runtime.messages import TokenOutput
from qwell.server.engine_client import EngineEvent

# A reader this far behind gets several tokens at once.
_MOST_APART = 64
# More would cost time: with log-probabilities every fold copies what there is.
_MOST_TOGETHER = 256


class Inbox:
    """Events of numbered choices.

    The events of one choice are read in the order in which they came. Beyond `_MOST_APART` that
    wait, tokens of a choice join those before them: a token is then 8 bytes and what its
    log-probabilities take, and no token is lost.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[int, EngineEvent]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, index: int, event: EngineEvent) -> None:
        """An event of the choice `index` has come."""
        if len(self._events) < _MOST_APART or not self._joined(index, event):
            self._events.append((index, event))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def put_back(self, events: Sequence[tuple[int, EngineEvent]]) -> None:
        """Have these, in their order, come before all that wait."""
        self._events.extendleft(reversed(events))

    async def get(self) -> tuple[int, EngineEvent]:
        """The next event, once there is one. One task may wait at a time."""
        while not self._events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    def _joined(self, index: int, event: EngineEvent) -> bool:
        for place in range(len(self._events) - 1, -1, -1):
            other, earlier = self._events[place]
            if other == index:
                if not (_only_tokens(earlier) and _only_tokens(event)):
                    return False
                if len(earlier.token_ids) >= _MOST_TOGETHER:
                    return False
                self._events[place] = index, _join(earlier, event)
                return True
        return False


def _only_tokens(event: EngineEvent) -> TypeGuard[TokenOutput]:
    return isinstance(event, TokenOutput) and event == TokenOutput(
        event.request_id,
        event.token_ids,
        cached_tokens=event.cached_tokens,
        prefill_s=event.prefill_s,
        logprobs=event.logprobs,
    )


def _join(earlier: TokenOutput, later: TokenOutput) -> TokenOutput:
    logprobs = earlier.logprobs
    if logprobs is not None and later.logprobs is not None:
        logprobs = logprobs.then(later.logprobs)
    return TokenOutput(
        earlier.request_id,
        earlier.token_ids + later.token_ids,
        cached_tokens=earlier.cached_tokens + later.cached_tokens,
        prefill_s=earlier.prefill_s + later.prefill_s,
        logprobs=logprobs,
    )
