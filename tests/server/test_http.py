"""Below the fields of a request: media types, paths, methods, sizes, connections, ids, the log."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from serving import PATIENCE_S, ServerProcess, error_of

from qwell.server.listen import listen

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


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


def test_a_body_must_not_be_packed(server: ServerProcess) -> None:
    answer = requests.post(
        f"{server.url}{COMPLETIONS}",
        data=gzip.compress(b'{"model": "m", "prompt": "say:hi"}'),
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        timeout=PATIENCE_S,
    )

    assert "gzip" in error_of(answer, 415)["message"]


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/models/x", "/v1/embedding", "/responses"])
def test_unknown_paths(server: ServerProcess, path: str) -> None:
    error_of(requests.get(f"{server.url}{path}", timeout=PATIENCE_S), 404)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/responses", "/v1/audio/speech", "/v1/files/f-1", "/v1/batches"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_routes_of_openai_are_refused_by_name(
    server: ServerProcess, method: str, path: str
) -> None:
    answer = requests.request(method, f"{server.url}{path}", json={}, timeout=PATIENCE_S)

    error = error_of(answer, 404)
    assert path in error["message"]
    assert "/v1/chat/completions" in error["message"]
    assert error["code"] == "unsupported_endpoint"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", COMPLETIONS, "POST"), ("DELETE", CHAT, "POST"), ("POST", "/v1/models", "GET")],
)
def test_wrong_methods(server: ServerProcess, method: str, path: str, allowed: str) -> None:
    answer = requests.request(method, f"{server.url}{path}", timeout=PATIENCE_S)

    error_of(answer, 405)
    assert allowed in answer.headers["allow"]


@pytest.fixture(scope="module")
def small_bodies(
    text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
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


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        b"GET /health HTTP/1.1\r\nX-Endless: ",
        CHUNKED + b"Content-Type: application/json\r\n\r\n0\r\nX-Endless: ",
        CHUNKED + b"Content-Type: application/json\r\n\r\n1;endless=",
    ],
    ids=["path", "header", "trailer", "chunk extension"],
)
def test_nothing_that_precedes_or_follows_a_body_is_endless(
    server: ServerProcess, start: bytes
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        try:
            raw.sendall(start)
            for _ in range(100):
                raw.sendall(b"x" * 16_384)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(100)
        except ConnectionError:
            pass  # closed while the rest was still on its way
        else:
            assert answer.startswith(b"HTTP/1.1 400 ")

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


def test_small_packets_do_not_wait_for_acknowledgements() -> None:
    (listener,) = listen("127.0.0.1", 0, loopback_only=True)
    with listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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
