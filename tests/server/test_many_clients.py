"""Far more clients than the cache and the queue hold: all are answered, and rightly."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from checkpoints import make_checkpoint
from serving import PATIENCE_S, ServerProcess
from tiny_tokenizers import tiny_backend

from qwell.bench.serving.http_client import Address, request

CLIENTS = 200
TOKENS = 64
"""Of a prompt and its completion together."""

REQUESTS_THAT_FIT = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A random checkpoint, and a cache for sixteen requests."""
    folder = tmp_path_factory.mktemp("overload") / "checkpoint"
    backend = tiny_backend()
    make_checkpoint(folder, vocab_size=backend.get_vocab_size() + 20)
    backend.save(str(folder / "tokenizer.json"))
    options = {"kv_cache_tokens": REQUESTS_THAT_FIT * TOKENS, "threads": 1, "max_queue": 128}
    log = folder.with_name("log")
    with ServerProcess(folder, log, worker=(), engine_options=options) as running:
        yield running


def bodies() -> list[dict[str, Any]]:
    """A request for each client, of twenty different ones."""
    return [
        {
            "model": "m",
            "prompt": [(7 * kind + 13 * place) % 256 for place in range(8 + kind)],
            "max_tokens": TOKENS - 8 - kind,
            "temperature": 0,
            "ignore_eos": True,
            "stream": client % 2 == 0,
        }
        for client, kind in ((client, client % 20) for client in range(CLIENTS))
    ]


async def ask(address: Address, body: dict[str, Any]) -> tuple[int, str]:
    """Status, and the text or the error's code; a 429 must say when to come back."""
    async with request(address, "POST", "/v1/completions", msgspec.json.encode(body)) as answer:
        if answer.status == 429:
            assert int(answer.headers["retry-after"]) > 0
        if answer.status != 200 or not body["stream"]:
            content = msgspec.json.decode(await answer.body())
            if answer.status != 200:
                return answer.status, content["error"]["message"]
            return 200, content["choices"][0]["text"]
        events = [data async for data in answer.events()]
        assert events.pop() == b"[DONE]"
        return 200, "".join(msgspec.json.decode(data)["choices"][0]["text"] for data in events)


async def ask_all(address: Address) -> list[tuple[int, str]]:
    """All clients at once; none may be left without an answer."""
    asked = asyncio.gather(*(ask(address, body) for body in bodies()))
    return await asyncio.wait_for(asked, PATIENCE_S)


def test_every_request_ends_with_its_text_or_a_429(server: ServerProcess) -> None:
    address = Address.parse(server.url)
    alone = {
        tuple(body["prompt"]): server.complete(**{**body, "stream": False})["choices"][0]["text"]
        for body in bodies()[:20]
    }
    assert len(set(alone.values())) > 10

    answers = asyncio.run(ask_all(address))

    statuses = Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 429}
    # What runs, and what the queue holds, is never refused.
    assert statuses[200] >= 128
    wrong = [
        (text, alone[tuple(body["prompt"])])
        for (status, text), body in zip(answers, bodies(), strict=True)
        if status == 200 and text != alone[tuple(body["prompt"])]
    ]
    assert wrong == []
    assert server.health() == (200, "ok")
    assert "starting a new engine" not in server.log
