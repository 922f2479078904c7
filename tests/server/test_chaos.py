"""Many rude clients and a crash at once: whoever is answered is answered right."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import requests
from serving import PATIENCE_S, ServerProcess

CLIENTS = 16
REQUESTS_EACH = 12


def polite(server: ServerProcess, number: int) -> None:
    """Whole answers: the right text, or an error that says the engine died."""
    answer = server.post(
        "/v1/completions", {"model": "m", "prompt": f"slow:{number}", "max_tokens": 50, "n": 2}
    )
    if answer.status_code == 200:
        assert [choice["text"] for choice in answer.json()["choices"]] == [str(number)] * 2
    else:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_unavailable"


def leaves_a_stream(server: ServerProcess, number: int) -> None:
    body = {"model": "m", "prompt": f"slow:{number}", "max_tokens": 4000, "ignore_eos": True}
    with requests.post(
        f"{server.url}/v1/completions",
        json={**body, "stream": True},
        stream=True,
        timeout=PATIENCE_S,
    ) as answer:
        assert answer.status_code in (200, 503)
        next(answer.iter_content(1))


def leaves_unread(server: ServerProcess, number: int) -> None:
    data = json.dumps({"model": "m", "prompt": f"slow:{number}" * 9, "max_tokens": 4000}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    cut = random.Random(number).randrange(len(data))
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(data))
        connection.sendall(data if number % 2 else data[:cut])


def test_rude_clients_and_a_crash(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server()
    behaviours = [polite, leaves_a_stream, leaves_unread]

    def behave(client: int) -> None:
        for turn in range(REQUESTS_EACH):
            if (client, turn) == (0, REQUESTS_EACH // 2) and server.health() == (200, "ok"):
                os.kill(server.worker_pid(), signal.SIGKILL)
            behaviours[(client + turn) % len(behaviours)](server, client * REQUESTS_EACH + turn)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(behave, client) for client in range(CLIENTS)]:
            done.result(PATIENCE_S)

    server.wait_for_health("ok")
    server.wait_until(lambda: server.report().startswith("running=0 "), "end of all requests")
    assert server.complete("say:hi")["choices"][0]["text"] == "hi"
    assert server.log.count("starting a new engine") == 1
    assert "Traceback" not in server.log
