"""One request as a client sees it: when its pieces come, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import msgspec

from qwell.bench.serving.http_client import Address, Answer, ServingError, request
from qwell.bench.serving.prompts import Turn

Endpoint = Literal["completions", "chat"]
Message = tuple[str, str]
"""Role and content."""

PATIENCE_S = 600.0
"""Longest wait for an answer; then the request counts as an error."""

_DONE = b"[DONE]"


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return 0 if details is None else details.cached_tokens or 0


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    """What is read of a chunk; other fields are skipped undecoded."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_event_decoder = msgspec.json.Decoder(_Event)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a request went. Times are in seconds; those of a failed request do not count.

    Attributes:
        turn: its place in the conversation, from 0.
        first_token: from sending it to the first token that shows.
        total: from sending it to the end of the answer.
        longest_gap: between two pieces of the answer.
        prompt_tokens, output_tokens: as the server counted them; where it does not, pieces.
        cached_tokens: of the prompt, that the server says it had computed before.
        error: None, or what kind of failure: a status, "cut", "unreachable", "timeout", ...
    """

    turn: int
    first_token: float = 0.0
    total: float = 0.0
    longest_gap: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def between_tokens(self) -> float | None:
        """Mean time from one token to the next; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.total - self.first_token) / (self.output_tokens - 1)


@dataclass(frozen=True)
class Client:
    """How requests are put to one server.

    Attributes:
        model: the name that the server goes by.
        sends_ids: prompts are token ids where there are any; otherwise text.
        ignores_eos: answers are as long as asked for, by fields that are not OpenAI's.
    """

    address: Address
    endpoint: Endpoint
    model: str
    sends_ids: bool = True
    ignores_eos: bool = True
    clock: Callable[[], float] = time.perf_counter

    async def ask(
        self, turn: Turn, before: Sequence[Message], place: int = 0
    ) -> tuple[Outcome, str]:
        """Put a turn that follows the messages `before`; how it went, and the answer's text."""
        body = msgspec.json.encode(self._body(turn, before))
        try:
            return await asyncio.wait_for(self._stream(body, place), PATIENCE_S)
        except asyncio.TimeoutError:
            error = "timeout"
        except ConnectionRefusedError:
            error = "unreachable"
        except (OSError, EOFError):
            error = "cut"
        except ValueError:
            error = "not understood"
        return Outcome(turn=place, error=error), ""

    def _body(self, turn: Turn, before: Sequence[Message]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": turn.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignores_eos:
            body["ignore_eos"] = True
        messages = [*before, ("user", turn.text)]
        if self.endpoint == "chat":
            body["messages"] = [{"role": role, "content": text} for role, text in messages]
            if self.ignores_eos:
                # The text of an answer lacks the end tokens in it, so the next turn would not find
                # what follows them in a cache of prefixes.
                body["min_tokens"] = turn.output_tokens
        elif turn.ids and self.sends_ids:
            body["prompt"] = turn.ids
        else:
            body["prompt"] = "\n\n".join(text for _, text in messages)
        return body

    async def _stream(self, body: bytes, place: int) -> tuple[Outcome, str]:
        path = "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"
        start = self.clock()
        async with request(self.address, "POST", path, body) as answer:
            if answer.status != 200:
                return Outcome(turn=place, error=str(answer.status)), await _reason(answer)
            return await self._read(answer, start, place)

    async def _read(self, answer: Answer, start: float, place: int) -> tuple[Outcome, str]:
        pieces: list[str] = []
        times: list[float] = []
        usage: _Usage | None = None
        finished = False
        async for data in answer.events():
            if data == _DONE:
                break
            event = _event_decoder.decode(data)
            if event.error:
                return Outcome(turn=place, error="error event"), bytes(event.error).decode()
            usage = event.usage or usage
            for choice in event.choices:
                finished = finished or choice.finish_reason is not None
                text = choice.text if choice.delta is None else choice.delta.content
                # The role alone is sent before there is a token.
                if text or choice.delta is None or choice.delta.role is None:
                    pieces.append(text or "")
                    times.append(self.clock())
        if not (finished and times):
            return Outcome(turn=place, error="cut"), ""
        gaps = [later - earlier for earlier, later in pairwise(times)]
        outcome = Outcome(
            turn=place,
            first_token=times[0] - start,
            total=times[-1] - start,
            longest_gap=max(gaps, default=0.0),
            prompt_tokens=0 if usage is None else usage.prompt_tokens,
            cached_tokens=0 if usage is None else usage.cached_tokens,
            output_tokens=len(pieces) if usage is None else usage.completion_tokens,
        )
        return outcome, "".join(pieces)


async def connect(address: Address, endpoint: Endpoint) -> Client:
    """A client that asks in the richest way that the server takes; it is warmed up by the try.

    Raises ServingError if the server answers none.
    """
    model = await _model_name(address)
    turn = Turn(text="time and again", ids=tuple(range(32, 64)), output_tokens=4)
    reason = ""
    for sends_ids, ignores_eos in ((True, True), (False, True), (False, False)):
        client = Client(address, endpoint, model, sends_ids, ignores_eos)
        outcome, text = await client.ask(turn, [])
        if outcome.error is None:
            return client
        reason = f"{outcome.error} {text}".strip()
        if outcome.error not in ("400", "422"):
            break
    raise ServingError(f"{address} does not answer a request to /v1 ({endpoint}): {reason}")


async def _model_name(address: Address) -> str:
    """The first one that the server lists."""
    try:
        async with request(address, "GET", "/v1/models") as answer:
            if answer.status != 200:
                raise ServingError(f"{address}/v1/models answers {answer.status}, not 200")
            listed = msgspec.json.decode(await answer.body(), type=_ModelList)
    except OSError as error:
        raise ServingError(f"{address} cannot be reached: {error}") from error
    except (EOFError, ValueError) as error:
        raise ServingError(f"{address}/v1/models is no list of models: {error}") from error
    if not listed.data:
        raise ServingError(f"{address}/v1/models lists no model")
    return listed.data[0].id


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


async def _reason(answer: Answer) -> str:
    return (await answer.body()).decode(errors="replace")[:200]
