"""A client that goes away frees what it held, and nothing else."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
from serving import PATIENCE_S, ServerProcess, raw_request


@pytest.fixture
def fresh(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server whose engine has not aborted anything yet."""
    return start_server(engine_options={"max_model_len": 100_000})


def wait_for_report(server: ServerProcess, expected: str) -> None:
    server.wait_until(lambda: server.report() == expected, expected)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/completions", {"prompt": "hold"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hold"}]}),
    ],
)
def test_while_waiting_for_the_first_token(
    fresh: ServerProcess, path: str, prompt: dict[str, Any], stream: bool
) -> None:
    with raw_request(fresh, path, {**prompt, "n": 3, "stream": stream}):
        wait_for_report(fresh, "running=3 aborted=0")

    wait_for_report(fresh, "running=0 aborted=3")


@pytest.mark.parametrize("stream", [False, True])
def test_while_tokens_come(fresh: ServerProcess, stream: bool) -> None:
    body = {"prompt": "slow:x", "max_tokens": 90_000, "ignore_eos": True, "stream": stream}
    with raw_request(fresh, "/v1/completions", body) as connection:
        if stream:
            assert b"data: " in connection.recv(65536) + connection.recv(65536)
        wait_for_report(fresh, "running=1 aborted=0")

    wait_for_report(fresh, "running=0 aborted=1")


def test_another_request_is_not_touched(fresh: ServerProcess) -> None:
    texts: list[str] = []

    def complete() -> None:
        answer = fresh.complete("slow:" + "a" * 100, max_tokens=200)
        texts.append(answer["choices"][0]["text"])

    other = threading.Thread(target=complete)
    body = {"prompt": "slow:" + "b" * 100, "max_tokens": 90_000, "stream": True}
    with raw_request(fresh, "/v1/completions", body) as connection:
        connection.recv(100)
        other.start()
        wait_for_report(fresh, "running=2 aborted=0")
    other.join(PATIENCE_S)

    assert texts == ["a" * 100]
    wait_for_report(fresh, "running=0 aborted=1")


def test_a_stream_that_the_client_closes(fresh: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{fresh.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "slow:hello"}],
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        stream.close()

        wait_for_report(fresh, "running=0 aborted=1")


def test_a_body_that_never_ends(fresh: ServerProcess) -> None:
    host, port = fresh.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 500\r\n\r\n{"model": '
        )

    assert fresh.complete("say:hi")["choices"][0]["text"] == "hi"
    assert "Traceback" not in fresh.log


def test_a_reader_that_is_slow_holds_up_nobody(fresh: ServerProcess) -> None:
    body = {"prompt": "say:" + "x" * 100, "max_tokens": 30_000, "ignore_eos": True, "stream": True}
    with raw_request(fresh, "/v1/completions", body) as connection:
        connection.recv(100)
        for _ in range(3):
            assert fresh.complete("say:hi")["choices"][0]["text"] == "hi"
        wait_for_report(fresh, "running=0 aborted=0")

        received = b""
        while b"[DONE]" not in received[-200:]:
            data = connection.recv(1 << 20)
            assert data, "the stream broke off"
            received += data

    # The tokens that waited for it came several at once; none is missing.
    assert sum(map(len, re.findall(rb'"text":"(x*)"', received))) == 30_000


def test_a_huge_prompt_holds_up_nobody(fresh: ServerProcess) -> None:
    answers: list[int] = []

    def post() -> None:
        body = {"model": "m", "prompt": "abc a " * 400_000}
        answers.append(fresh.post("/v1/completions", body).status_code)

    huge = threading.Thread(target=post)
    huge.start()
    served = 0
    while huge.is_alive():
        assert fresh.complete("say:hi")["choices"][0]["text"] == "hi"
        served += 1

    assert answers == [400]
    assert served > 10


def test_many_at_once_get_their_own_text(fresh: ServerProcess) -> None:
    texts: dict[int, str] = {}

    def complete(number: int) -> None:
        answer = fresh.complete(f"slow:{number} " * 5, max_tokens=100)
        texts[number] = answer["choices"][0]["text"]

    threads = [threading.Thread(target=complete, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert texts == {number: f"{number} " + f"slow:{number} " * 4 for number in range(32)}
