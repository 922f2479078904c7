"""One line a request: what it says, and what it keeps to itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import requests
from serving import PATIENCE_S, ServerProcess

StartServer = Callable[..., ServerProcess]

SECRET = "the rabbit is in the hat"
_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def line_of(server: ServerProcess, request_id: str) -> dict[str, str]:
    """The fields of a request's line, once it is there."""

    def lines() -> list[str]:
        return [line for line in server.log.splitlines() if f" id={request_id} " in line]

    server.wait_until(lines, "line in the log")
    (line,) = lines()
    pairs = _PAIR.findall(line.partition(" request ")[2])
    return {key: json.loads(value) if value[0] == '"' else value for key, value in pairs}


def post(server: ServerProcess, request_id: str, stream: bool = False) -> requests.Response:
    messages = [{"role": "user", "content": f"say:{SECRET}"}]
    return server.post(
        "/v1/chat/completions",
        {"model": "m", "messages": messages, "stream": stream},
        headers={"X-Request-Id": request_id},
    )


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_line_says(server: ServerProcess, stream: bool) -> None:
    answer = post(server, f"says-{stream}", stream)

    line = line_of(server, f"says-{stream}")
    assert float(line.pop("ms")) > 0
    assert line == {
        "id": f"says-{stream}",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": "200",
        "bytes": str(len(answer.content)),
    }


def test_a_strange_path_is_quoted(server: ServerProcess) -> None:
    headers = {"X-Request-Id": "strange"}
    requests.get(f'{server.url}/a%20b"%0d%c3%a9=?key=k', headers=headers, timeout=PATIENCE_S)

    line = line_of(server, "strange")
    assert line["path"] == '/a b"\r\u00e9='
    assert line["status"] == "404"
    assert "key=k" not in server.log


def test_an_answer_that_nobody_waited_for(server: ServerProcess) -> None:
    body = {"model": "m", "prompt": "slow:x", "max_tokens": 4000, "ignore_eos": True}
    with requests.post(
        f"{server.url}/v1/completions",
        json={**body, "stream": True},
        headers={"X-Request-Id": "impatient"},
        stream=True,
        timeout=PATIENCE_S,
    ) as answer:
        next(answer.iter_content(1))

    assert line_of(server, "impatient")["cut"] == "true"


def test_prompts_and_answers_stay_out_of_the_log(start_server: StartServer) -> None:
    server = start_server()

    post(server, "private")
    server.post("/v1/completions", {"model": "m", "prompt": SECRET, "n": "x"})
    server.post("/v1/completions", {"model": "m", "prompt": [SECRET, 1]})

    line_of(server, "private")
    assert SECRET not in server.log


def test_prompts_are_logged_when_asked_for(start_server: StartServer) -> None:
    server = start_server(log_prompts=True)

    post(server, "open")

    body = json.loads(line_of(server, "open")["body"])
    assert body["messages"][0]["content"] == f"say:{SECRET}"


def test_a_long_body_is_logged_in_part(start_server: StartServer) -> None:
    server = start_server(log_prompts=True)

    headers = {"X-Request-Id": "long"}
    server.post("/v1/completions", {"model": "m", "prompt": "x" * 1_000_000}, headers=headers)

    assert len(line_of(server, "long")["body"]) == 64 << 10


def test_probes_of_a_healthy_server_are_left_out(start_server: StartServer) -> None:
    server = start_server()
    before = server.log.count("path=/health")

    for _ in range(3):
        assert server.health() == (200, "ok")

    post(server, "last")
    line_of(server, "last")
    assert server.log.count("path=/health") == before
