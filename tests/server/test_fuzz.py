"""Requests nobody would write: every one is answered, none with a 5xx, and nothing of them stays.

2,000 here; `make fuzz` sends 20,000, others each time.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
import requests
import schemathesis
from chat_templates import QWEN3, server_of
from hypothesis import HealthCheck, Phase, given, seed, settings
from mutations import GOOD, Mutant, Mutator
from schemathesis import GenerationMode
from serving import PATIENCE_S, ServerProcess, anonymous_bytes

REQUESTS = int(os.environ.get("QWELL_FUZZ_REQUESTS", "2000"))
SEED = random.randrange(2**32) if "QWELL_FUZZ_REQUESTS" in os.environ else 1
# Of these schemathesis makes some, from the OpenAPI document; it takes its time.
BY_SCHEMA = REQUESTS // 10
# And some are bytes that may be no HTTP at all.
BY_BYTES = REQUESTS // 10
# What allocators and threads take while they find their size; a kilobyte a request would show.
GROWTH_BYTES = (3 << 20) + 512 * REQUESTS


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A short context, so that no request takes long, and a template with tools and thinking."""
    folder = tmp_path_factory.mktemp("fuzzed")
    with server_of(QWEN3, folder, engine_options={"max_model_len": 512}) as running:
        yield running


class Sender:
    """Sends requests one after the other; the connection lives for as long as the server lets it.

    Attributes:
        statuses: how often each was the answer.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._connection = http.client.HTTPConnection(
            server.url.removeprefix("http://"), timeout=PATIENCE_S
        )
        self.statuses: Counter[int] = Counter()

    def send(self, mutant: Mutant) -> None:
        """Send, and check that the answer is one that clients understand."""
        headers = {name: value.encode("latin-1") for name, value in mutant.headers.items()}
        self._connection.request(mutant.method, mutant.path, mutant.body or None, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        self.statuses[answer.status] += 1
        assert answer.status < 500, (mutant, content)
        assert b'"type":"server_error"' not in content, mutant
        if answer.status >= 400 and mutant.method != "HEAD":
            error = msgspec.json.decode(content)["error"]
            assert set(error) == {"message", "type", "param", "code"}, mutant


def check_well(server: ServerProcess) -> None:
    """The next good request gets the right answer."""
    assert server.complete("say:hi")["choices"][0]["text"] == "hi"


def check_growth(server: ServerProcess, requests_left: int, send: Callable[[], None]) -> None:
    """Send so many; server and engine are no larger than after the first third of them."""
    pids = server.process.pid, server.worker_pid()
    before = [0, 0]
    for number in range(requests_left):
        if number == requests_left // 3:
            before = [anonymous_bytes(pid) for pid in pids]
        if number % 100 == 0:
            check_well(server)
        send()
    check_well(server)
    growth = [anonymous_bytes(pid) - size for pid, size in zip(pids, before, strict=True)]
    print(f"server and engine have grown by {[size >> 10 for size in growth]} KiB")
    assert max(growth) < GROWTH_BYTES
    assert pids == (server.process.pid, server.worker_pid())
    assert "Traceback" not in server.log


def test_spoilt_requests(fuzzed: ServerProcess) -> None:
    mutator, sender = Mutator(SEED), Sender(fuzzed)

    check_growth(fuzzed, REQUESTS - BY_SCHEMA - BY_BYTES, lambda: sender.send(mutator.draw()))

    print(f"seed {SEED}: {dict(sender.statuses)}")
    # Neither all refused at the door nor all taken.
    assert sender.statuses[200] > REQUESTS // 20
    assert sender.statuses[400] > REQUESTS // 4
    assert {404, 405, 415} <= set(sender.statuses)


def test_spoilt_bytes(fuzzed: ServerProcess) -> None:
    mutator, statuses = Mutator(SEED), Counter[str]()
    host, port = fuzzed.url.removeprefix("http://").split(":")

    def send() -> None:
        data = mutator.draw_bytes()
        answer = bytearray()
        with (
            socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection,
            # The server may have closed it before it has read everything.
            contextlib.suppress(ConnectionError),
        ):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                answer += piece
        status = answer[:12].decode("latin-1")
        statuses[status] += 1
        assert status in ("", "HTTP/1.1 100") or re.fullmatch(r"HTTP/1\.1 [24]\d\d", status), data

    check_growth(fuzzed, BY_BYTES, send)

    print(f"seed {SEED}: {dict(statuses)}")
    assert statuses["HTTP/1.1 400"] > BY_BYTES // 10


def test_requests_that_do_not_fit_the_document(fuzzed: ServerProcess) -> None:
    document = requests.get(f"{fuzzed.url}/openapi.json", timeout=PATIENCE_S).json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=fuzzed.url)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    operations = [operation for operation in operations if operation.body]
    assert {operation.path for operation in operations} == set(GOOD)
    sent = 0

    for operation in operations:

        @seed(SEED)
        @settings(
            max_examples=BY_SCHEMA // len(operations),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        def check(case: schemathesis.Case) -> None:
            nonlocal sent
            sent += 1
            answer = case.call(timeout=PATIENCE_S)
            assert 400 <= answer.status_code < 500, answer.text
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        check()
        check_well(fuzzed)
    assert sent > BY_SCHEMA * 0.9
    assert "Traceback" not in fuzzed.log
