"""A server process under test, reached over real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import requests

from qwell.runtime.engine_options import EngineOptions
from qwell.server.options import ServeOptions

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
PATIENCE_S = 60.0

_SERVE = """
import sys
import msgspec
from qwell.server.main import serve
from qwell.server.options import ServeOptions
options = msgspec.json.decode(sys.argv[1], type=ServeOptions)
sys.exit(serve(options, worker=sys.argv[2:]) if sys.argv[2:] else serve(options))
"""
_LISTENING = re.compile(r"listening on (https?://\S+)")


class ServerProcess:
    """`serve` in a process of its own, as a context manager.

    Args:
        folder: the checkpoint; `engine_options` and `options` are those of EngineOptions and
            ServeOptions.
        log: where its stderr goes.
        worker: command of the engine process; the scripted one unless given, () for the real.
        ready: wait until it is healthy.
    """

    def __init__(
        self,
        folder: Path,
        log: Path,
        *,
        worker: Sequence[str] = FAKE_WORKER,
        engine_options: dict[str, Any] | None = None,
        ready: bool = True,
        **options: Any,
    ) -> None:
        engine = EngineOptions(
            model=str(folder), device="cpu", weight_cache=False, **(engine_options or {})
        )
        serve_options = ServeOptions(
            **{"engine": engine, "model_name": "tiny", "port": 0, **options}
        )
        self._log = log
        self._ready = ready
        self._command = [
            *(sys.executable, "-c", _SERVE),
            msgspec.json.encode(serve_options).decode(),
            *worker,
        ]
        self.url = ""

    def __enter__(self) -> ServerProcess:
        # Models this small only lose by threads, most of all where tests run side by side.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._log.open("wb") as stderr:
            self.process = subprocess.Popen(
                self._command, stderr=stderr, env=environment, start_new_session=True
            )
        self.url = self._wait_for_url()
        if self._ready:
            self.wait_for_health("ok")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text()

    def post(self, path: str, body: object, **options: Any) -> requests.Response:
        """POST JSON."""
        return requests.post(f"{self.url}{path}", json=body, timeout=PATIENCE_S, **options)

    def complete(self, prompt: object, **fields: Any) -> dict[str, Any]:
        """The body of a successful /v1/completions."""
        answer = self.post("/v1/completions", {"model": "m", "prompt": prompt, **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def report(self) -> str:
        """What the scripted engine says of itself: "running=N aborted=N"."""
        return str(self.complete("report", max_tokens=64)["choices"][0]["text"])

    def health(self) -> tuple[int, str]:
        """Status code and status word of /health."""
        answer = requests.get(f"{self.url}/health", timeout=PATIENCE_S)
        return answer.status_code, answer.json()["status"]

    def wait_for_health(self, status: str) -> None:
        """Wait for a status word."""
        self.wait_until(lambda: self.health()[1] == status, f"health {status!r}")

    def wait_until(self, condition: Any, what: str) -> None:
        """Poll for something that must come about."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.log}"
            time.sleep(0.02)

    def worker_pid(self) -> int:
        """Process id of the engine process."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (pid,) = path.read_text().split()
        return int(pid)

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _wait_for_url(self) -> str:
        self.wait_until(lambda: _LISTENING.search(self.log), "listening line")
        found = _LISTENING.search(self.log)
        assert found is not None
        return found[1]


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is its own, in RAM; files that it maps do not count."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(kilobytes) << 10


@contextmanager
def raw_request(
    server: ServerProcess, path: str, body: dict[str, Any], *, receive_buffer: int | None = None
) -> Iterator[socket.socket]:
    """Send a request; leaving the block closes the connection.

    `receive_buffer` bounds the bytes that arrive unread.
    """
    host, port = server.url.removeprefix("http://").split(":")
    data = json.dumps({"model": "m", **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.socket() as connection:
        connection.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect((host, int(port)))
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield connection


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
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    assert error["type"] == (kind if status < 500 else "server_error")
    return error
