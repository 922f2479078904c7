"""Clients that ask for streams and do not read them: nobody waits, and they cost little."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from serving import PATIENCE_S, ServerProcess, anonymous_bytes, raw_request

from qwell.runtime.messages import Accepted, Logprobs, TokenOutput
from qwell.server.inbox import Inbox
from qwell.server.listen import listen

READERS = 64
TOKENS_EACH = 3000
# What uvicorn holds of an answer that its client does not take (64 KiB and what the allocator makes
# of that), with room for the stream itself.
BYTES_EACH = 256 << 10
# An id in a list; twice, as the engine goes on while we look.
BYTES_A_TOKEN = 16


def generated(server: ServerProcess) -> float:
    """Tokens since the server's start."""
    text = requests.get(f"{server.url}/metrics", timeout=PATIENCE_S).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return float(families["vllm:generation_tokens"].samples[0].value)


def test_many_hold_up_nobody_and_their_buffers_are_bounded(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(engine_options={"max_model_len": 100_000})
    endless = {"prompt": "say:x", "max_tokens": 90_000, "ignore_eos": True, "stream": True}
    with raw_request(server, "/v1/completions", endless) as connection:
        # The server is as large as one reader makes it.
        while connection.recv(1 << 16) and generated(server) < TOKENS_EACH:
            pass
    server.wait_until(lambda: server.report() == "running=0 aborted=1", "end of the first")
    before, begun = anonymous_bytes(server.process.pid), generated(server)

    with ExitStack() as readers:
        for _ in range(READERS):
            readers.enter_context(
                raw_request(server, "/v1/completions", endless, receive_buffer=4096)
            )
        served = 0
        while generated(server) - begun < READERS * TOKENS_EACH or served < 10:
            assert server.complete("say:hi")["choices"][0]["text"] == "hi"
            served += 1
        growth = anonymous_bytes(server.process.pid) - before
        tokens = generated(server) - begun
        print(f"{growth >> 10} KiB for {READERS} readers with {tokens:.0f} tokens to read")

        assert server.report() == f"running={READERS} aborted=1"
        assert growth < READERS * BYTES_EACH + tokens * BYTES_A_TOKEN

    server.wait_until(
        lambda: server.report() == f"running=0 aborted={1 + READERS}", "end of those that left"
    )
    assert "Traceback" not in server.log


def test_the_system_ends_connections_that_nobody_reads() -> None:
    (listener,) = listen("127.0.0.1", 0, loopback_only=True, stall_s=0.5)
    with listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(False)
            waiting = 0
            with contextlib.suppress(BlockingIOError):
                while waiting < 1 << 20:
                    waiting += connection.send(bytes(1 << 16))
            assert waiting < 1 << 20

            poll = select.poll()
            poll.register(connection, 0)
            ((_, events),) = poll.poll(PATIENCE_S * 1000)

            assert events & select.POLLERR
            with pytest.raises(TimeoutError):
                connection.send(b"x")


def test_what_waits_is_joined_in_order() -> None:
    inbox, choices = Inbox(), 3
    score = Logprobs(bytes(4), bytes(8), bytes(8))
    for index in range(choices):
        inbox.put(index, Accepted(str(index)))
    for number in range(2000):
        for index in range(choices):
            first = {"cached_tokens": 5, "prefill_s": 2.0} if number == 0 else {}
            scored = score if index else None
            inbox.put(index, TokenOutput(str(index), [number], logprobs=scored, **first))
    for index in range(choices):
        inbox.put(index, TokenOutput(str(index), [], error="no token is left"))
        inbox.put(index, TokenOutput(str(index), [2000], "stop"))
    events = asyncio.run(drained(inbox))

    assert len(events) < 64 + choices * (2000 // 256 + 3)
    for index in range(choices):
        first, *outputs, error, last = [event for place, event in events if place == index]
        assert first == Accepted(str(index))
        assert error == TokenOutput(str(index), [], error="no token is left")
        assert last == TokenOutput(str(index), [2000], "stop")
        assert [token for output in outputs for token in output.token_ids] == [*range(2000)]
        assert [(o.cached_tokens, o.prefill_s) for o in outputs][:2] == [(5, 2.0), (0, 0.0)]
        if index:
            assert all(len(o.logprobs.tokens()) == len(o.token_ids) for o in outputs)


async def drained(inbox: Inbox) -> list[tuple[int, object]]:
    """All that is in it."""
    inbox.put(-1, Accepted("the end"))
    events = []
    while (event := await inbox.get())[0] != -1:
        events.append(event)
    return events
