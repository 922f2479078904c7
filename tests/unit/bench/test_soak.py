"""`qwell bench soak`: what it accepts, and that it sees what is wrong."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from openai_stub import OpenAIStub, stream, whole

from qwell.bench.serving import soak as module
from qwell.bench.serving.http_client import ServingError
from qwell.bench.serving.soak import Soak, growth, soak

Answer = Callable[[dict[str, Any], int], Awaitable[bytes]]
SECONDS = 0.5
SINGLE = 10
"""Requests before the load."""


def text_of(body: dict[str, Any]) -> str:
    return f"{body['prompt'][-8:]} {body['max_tokens']}"


def is_sound(body: Any) -> bool:
    return isinstance(body, dict) and body.get("max_tokens", 2**31) < 2**20 and len(body) > 3


async def right(body: Any, _: int) -> bytes:
    """As a server should."""
    await asyncio.sleep(0.002)
    if not is_sound(body):
        return whole(400, {})
    if body.get("stream"):
        return stream(list(text_of(body)))
    return whole(200, {"choices": [{"text": text_of(body)}]})


def run(answer: Answer, clients: int = 4) -> Soak:
    """Half a second of load on a server that gives this answer to each body and its number."""

    async def reply(body: Any) -> bytes:
        return await answer(body, len(stub.bodies))

    async def main() -> Soak:
        async with stub:
            return await soak(stub.address, os.getpid(), SECONDS, clients, 0, lambda _: None)

    stub = OpenAIStub(reply)
    return asyncio.run(main())


def test_a_sound_server_has_no_faults() -> None:
    result = run(right)
    assert result.faults == []
    kinds = {"crowd", "whole", "stream", "left", "left stream", "bad", "alone again"}
    assert set(result.requests) == kinds
    assert result.anonymous


def broken(how: Callable[[Any], bytes]) -> Answer:
    """Right when asked alone, and wrong in one request of five under load."""

    async def answer(body: Any, number: int) -> bytes:
        if number > SINGLE and number % 5 == 0:
            return how(body)
        return await right(body, number)

    return answer


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda _: whole(200, {"choices": [{"text": "another's"}]}), "instead of"),
        (lambda _: stream(["another's"]), "is not how"),
        (lambda body: stream(["" if not is_sound(body) else text_of(body)[:3]]), "instead of"),
        (lambda _: whole(503, {}), "status 503 instead of 200"),
        (lambda _: whole(200, {"choices": [{"text": ""}]}), "status 200 instead of 400"),
        (lambda _: b"", "closed before an answer"),
        (lambda _: stream()[:-40], "bytes read on a total of"),
    ],
)
def test_what_is_wrong_is_a_fault(how: Callable[[Any], bytes], words: str) -> None:
    assert any(words in fault for fault in run(broken(how)).faults)


def test_an_answer_that_never_comes_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)

    async def hangs(body: Any, number: int) -> bytes:
        if number == SINGLE + 1:
            await asyncio.sleep(1.0)
        return await right(body, number)

    assert "crowd: no answer in 0 s" in run(hangs).faults


def test_memory_that_grows_is_no_pass() -> None:
    assert Soak(anonymous=[1000] * 4 + [1019] * 4).passed
    assert not Soak(anonymous=[1000] * 4 + [1020] * 4).passed
    assert not Soak(anonymous=[1000] * 8, faults=["lost"]).passed


def test_a_server_that_answers_nobody() -> None:
    async def refuses(_: Any, __: int) -> bytes:
        return whole(500, {})

    with pytest.raises(ServingError, match="with 500"):
        run(refuses)


@pytest.mark.parametrize(
    ("amounts", "share"),
    [
        ([], 0.0),
        ([100], 0.0),
        ([100, 110], 0.1),
        ([100] * 40 + [500] + [100] * 39, 0.0),
        ([100, 100, 102, 104, 106, 108, 110, 110], 0.1),
        ([200, 200, 150, 150, 100, 100, 100, 100], -0.5),
    ],
)
def test_growth_is_from_the_first_quarter_to_the_last(amounts: list[int], share: float) -> None:
    assert growth(amounts) == pytest.approx(share)
