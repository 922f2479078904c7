"""Everything that is refused: the status, the field at fault, and OpenAI's error shape."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import requests
from serving import PATIENCE_S, ServerProcess

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "say:hello"}]

UNSUPPORTED = {
    COMPLETIONS: {
        "suffix": "end",
        "logprobs": 1,
        "best_of": 2,
        "logit_bias": {"5": 1},
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    },
    CHAT: {
        "logit_bias": {"5": 1},
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "audio": {"voice": "alloy", "format": "wav"},
        "function_call": {"name": "f"},
        "functions": [{"name": "f"}],
        "logprobs": True,
        "modalities": ["text", "audio"],
        "moderation": {"model": "m"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_options": {"mode": "implicit"},
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "service_tier": "priority",
        "store": True,
        "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "top_logprobs": 3,
        "verbosity": "low",
        "web_search_options": {},
    },
}

WRONG = [
    (COMPLETIONS, {"model": None}, "model"),
    (COMPLETIONS, {"model": 3}, "model"),
    (COMPLETIONS, {"prompt": None}, "prompt"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", ""]}, "prompt"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
    (COMPLETIONS, {"prompt": [1, [1]]}, "prompt"),
    (COMPLETIONS, {"prompt": [1, True]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [1, -1]}, "prompt[1]"),
    (COMPLETIONS, {"prompt": [[1], [2**70]]}, "prompt[1][0]"),
    (COMPLETIONS, {"prompt": [5000]}, "prompt"),
    (COMPLETIONS, {"prompt": {"a": 1}}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 65, "n": 2}, "n"),
    (COMPLETIONS, {"n": 0}, "n"),
    (COMPLETIONS, {"n": 129}, "n"),
    (COMPLETIONS, {"n": True}, "n"),
    (COMPLETIONS, {"n": 1.5}, "n"),
    (COMPLETIONS, {"max_tokens": -1}, "max_tokens"),
    (COMPLETIONS, {"max_tokens": "5"}, "max_tokens"),
    (COMPLETIONS, {"max_tokens": 2**63}, "max_tokens"),
    (COMPLETIONS, {"temperature": 2.1}, "temperature"),
    (COMPLETIONS, {"temperature": -0.1}, "temperature"),
    (COMPLETIONS, {"temperature": True}, "temperature"),
    (COMPLETIONS, {"temperature": "hot"}, "temperature"),
    (COMPLETIONS, {"top_p": 0}, "top_p"),
    (COMPLETIONS, {"top_p": 1.01}, "top_p"),
    (COMPLETIONS, {"top_k": -1}, "top_k"),
    (COMPLETIONS, {"min_p": 1.5}, "min_p"),
    (COMPLETIONS, {"repetition_penalty": 0}, "repetition_penalty"),
    (COMPLETIONS, {"seed": 2**63}, "seed"),
    (COMPLETIONS, {"seed": -(2**63) - 1}, "seed"),
    (COMPLETIONS, {"stop": ["x"] * 17}, "stop"),
    (COMPLETIONS, {"stop": ""}, "stop"),
    (COMPLETIONS, {"stop": ["a", ""]}, "stop"),
    (COMPLETIONS, {"stop": [1]}, "stop[0]"),
    (COMPLETIONS, {"stream": "yes"}, "stream"),
    (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options"),
    (
        COMPLETIONS,
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
    ),
    (
        COMPLETIONS,
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    (COMPLETIONS, {"stream": True, "stream_options": {"x": True}}, "stream_options.x"),
    (COMPLETIONS, {"messages": HELLO}, "messages"),
    (COMPLETIONS, {"max_token": 5}, "max_token"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"content": "hello"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1].role"),
    (CHAT, {"messages": [*HELLO, {"role": "function", "content": "x"}]}, "messages[1].role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        CHAT,
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}
            ]
        },
        "messages[0].content[0].type",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": "ok"}]}, "messages[0].mood"),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls",
    ),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    (CHAT, {"prompt": "x"}, "prompt"),
    (CHAT, {"echo": True}, "echo"),
]

NOT_JSON = [
    b"",
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b'"text"',
    b"{} {}",
    b'{"model": "m", "prompt": "x", "temperature": NaN}',
    b'{"model": "m", "prompt": "x", "temperature": Infinity}',
    b'{"model": "m", "prompt": "x", "temperature": 1e999}',
    b'{"model": "m", "prompt": "\\ud800"}',
    b'{"model": "m", "prompt": "\\udc00 x"}',
    b'{"model": "m", "prompt": "\xff"}',
    b'{"model": "m", "prompt": "\xed\xa0\x80"}',
    b'{"model": "m", "prompt": ' + b"[" * 100_000,
    b'{"model": "m", "messages": [], "tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"model": "m", "messages": [], "tools": ' + b'{"a":' * 100_000,
    b'{"model": "m", "prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
    "{}".encode("utf-16"),
    b"\xef\xbb\xbf{}",
]


def base_body(path: str) -> dict[str, Any]:
    if path == CHAT:
        return {"model": "m", "messages": HELLO}
    return {"model": "m", "prompt": "say:hello"}


def error_of(answer: requests.Response, status: int) -> dict[str, Any]:
    """The error object of an answer, once its shape has been checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return error


@pytest.mark.parametrize(
    ("path", "field"), [(path, field) for path, fields in UNSUPPORTED.items() for field in fields]
)
def test_unsupported_fields_are_refused_by_name(
    server: ServerProcess, path: str, field: str
) -> None:
    answer = server.post(path, {**base_body(path), field: UNSUPPORTED[path][field]})

    error = error_of(answer, 400)
    assert error["param"] == field
    assert field in error["message"]
    assert "not supported yet" in error["message"]


@pytest.mark.parametrize(("path", "fields", "param"), WRONG)
def test_wrong_values_are_refused_by_name(
    server: ServerProcess, path: str, fields: dict[str, Any], param: str
) -> None:
    answer = server.post(path, {**base_body(path), **fields})

    assert error_of(answer, 400)["param"] == param


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_missing_fields_are_named(server: ServerProcess, field: str) -> None:
    body = base_body(COMPLETIONS)
    del body[field]

    assert error_of(server.post(COMPLETIONS, body), 400)["param"] == field


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:40]))
def test_bodies_that_are_no_json_object(server: ServerProcess, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}

    answer = requests.post(f"{server.url}{path}", data=body, headers=headers, timeout=PATIENCE_S)

    error_of(answer, 400)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "max_tokens"), [("say:hello", 5000), ("x" * 5000, 1), ("x" * 4096, 1)]
)
def test_more_than_the_context_holds(
    client: openai.OpenAI, prompt: str, max_tokens: int, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(
            model="m", prompt=["say:fits", prompt], max_tokens=max_tokens, stream=stream
        )

    assert caught.value.code == "context_length_exceeded"
    assert "4096" in caught.value.message


def test_a_conversation_that_fills_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x" * 5000}]
        )

    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_one_refused_choice_leaves_no_other_running(server: ServerProcess) -> None:
    body = {"model": "m", "prompt": [list(b"hold"), [5000]], "stream": True}

    error_of(server.post(COMPLETIONS, body), 400)

    server.wait_until(lambda: server.report().startswith("running=0 "), "abort of the other")


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}],
)
def test_a_body_must_be_declared_as_json(server: ServerProcess, headers: dict[str, str]) -> None:
    answer = requests.post(
        f"{server.url}{COMPLETIONS}", data=b"{}", headers=headers, timeout=PATIENCE_S
    )

    error_of(answer, 415)


def test_content_type_may_have_parameters(server: ServerProcess) -> None:
    answer = requests.post(
        f"{server.url}{COMPLETIONS}",
        data=b'{"model": "m", "prompt": "say:hi"}',
        headers={"Content-Type": "Application/JSON; charset=utf-8"},
        timeout=PATIENCE_S,
    )

    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/models/x", "/v1/embeddings", "/docs"])
def test_unknown_paths(server: ServerProcess, path: str) -> None:
    error_of(requests.get(f"{server.url}{path}", timeout=PATIENCE_S), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", COMPLETIONS, "POST"), ("DELETE", CHAT, "POST"), ("POST", "/v1/models", "GET")],
)
def test_wrong_methods(server: ServerProcess, method: str, path: str, allowed: str) -> None:
    answer = requests.request(method, f"{server.url}{path}", timeout=PATIENCE_S)

    error_of(answer, 405)
    assert allowed in answer.headers["allow"]


@pytest.fixture(scope="module")
def small_bodies(text_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    log = tmp_path_factory.mktemp("small") / "log"
    with ServerProcess(text_folder, log, max_body_bytes=1000) as running:
        yield running


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_have_a_limit(small_bodies: ServerProcess, chunked: bool) -> None:
    pieces = [b'{"model": "m", "prompt": "', b"x" * 3_000_000, b'"}']

    with requests.Session() as session:
        answer = session.post(
            f"{small_bodies.url}{COMPLETIONS}",
            data=iter(pieces) if chunked else b"".join(pieces),
            headers={"Content-Type": "application/json"},
            timeout=PATIENCE_S,
        )
        error_of(answer, 413)
        small = {"model": "m", "prompt": "say:hi"}
        again = session.post(f"{small_bodies.url}{COMPLETIONS}", json=small, timeout=PATIENCE_S)

    assert again.status_code == 200


def test_a_declared_length_over_the_limit_is_refused_unread(small_bodies: ServerProcess) -> None:
    host, port = small_bodies.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_headers_have_a_limit(server: ServerProcess) -> None:
    headers = {"X-Long": "x" * 200_000}

    try:
        answer = requests.get(f"{server.url}/v1/models", headers=headers, timeout=PATIENCE_S)
    except requests.RequestException:
        pass  # closed while the rest was still on its way
    else:
        assert 400 <= answer.status_code < 500

    assert server.health() == (200, "ok")


def test_a_connection_lives_on_after_errors(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)
    headers = {"Content-Type": "application/json"}
    statuses = []
    with contextlib.closing(connection):
        connection.connect()
        first_socket = connection.sock
        for method, path, body in [("POST", CHAT, "{"), ("GET", "/x", None), ("POST", CHAT, "")]:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        assert connection.sock is first_socket

    assert statuses == [400, 404, 400]


def test_request_ids(server: ServerProcess) -> None:
    def request_id(given: str) -> str:
        headers = {"X-Request-Id": given}
        answer = requests.get(f"{server.url}/health", headers=headers, timeout=PATIENCE_S)
        return answer.headers["x-request-id"]

    assert request_id("my-id_1") == "my-id_1"
    assert request_id("x" * 128) == "x" * 128
    assert len({request_id(bad) for bad in ["", "a b", "x" * 129, "\u00e9"]}) == 4


def test_a_request_cannot_write_lines_into_the_log(server: ServerProcess) -> None:
    path = "/v1/models/a%0d%0aFORGED%1b[31m"

    answer = requests.get(f"{server.url}{path}", timeout=PATIENCE_S)

    error_of(answer, 404)
    assert not any(line.startswith("FORGED") for line in server.log.splitlines())
    assert "\x1b" not in server.log


def test_served_model_names(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(served_model_names=("qwen", "team/qwen:7b"))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [card.id for card in client.models.list()] == ["qwen", "team/qwen:7b"]
        assert client.models.retrieve("team/qwen:7b").id == "team/qwen:7b"
        assert client.completions.create(model="qwen", prompt="say:hi").model == "qwen"
        with pytest.raises(openai.NotFoundError) as caught:
            client.completions.create(model="gpt-3.5-turbo", prompt="say:hi")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(
                model="other", messages=[{"role": "user", "content": "x"}]
            )
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-3.5-turbo")


def test_without_names_the_list_is_for_compatibility_only(client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == ["gpt-3.5-turbo"]
    assert client.models.retrieve("gpt-3.5-turbo").owned_by == "owner"
    assert client.completions.create(model="any/thing", prompt="say:hi").model == "any/thing"
