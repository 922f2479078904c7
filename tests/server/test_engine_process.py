"""The life of the engine process: loading, failing to, dying, coming back, and the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
import requests
from serving import FAKE_WORKER, PATIENCE_S, ServerProcess, error_of

from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.messages import Abort
from qwell.server.engine_process import EngineProcess

StartServer = Callable[..., ServerProcess]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A path; an engine process that waits at the gate loads until a file is there."""
    return tmp_path / "gate"


def waits_at(gate: Path) -> list[str]:
    return [*FAKE_WORKER, "--load-until", str(gate)]


def is_alive(pid: int) -> bool:
    """Whether a process exists that has not ended yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_while_the_model_loads(start_server: StartServer, gate: Path) -> None:
    server = start_server(worker=waits_at(gate), ready=False)

    assert server.health() == (503, "loading")
    for path in ["/v1/models", "/version"]:
        assert requests.get(f"{server.url}{path}", timeout=PATIENCE_S).status_code == 200
    for path in ["/v1/completions", "/v1/chat/completions"]:
        answer = server.post(path, {"model": "m", "prompt": "x"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["message"] == "Loading model"
    gate.touch()
    server.wait_for_health("ok")
    assert server.complete("say:hi")["choices"][0]["text"] == "hi"


def test_openai_client_waits_for_the_model(start_server: StartServer, gate: Path) -> None:
    server = start_server(worker=waits_at(gate), ready=False)
    threading.Timer(0.5, gate.touch).start()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5) as client:
        assert client.completions.create(model="m", prompt="say:hi").choices[0].text == "hi"


KILLED = "killed by SIGKILL, as by a system that is out of memory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail", "config.json lacks hidden_size"], "config.json lacks hidden_size"),
        (["--die"], f"the engine process ended ({KILLED})"),
    ],
)
def test_a_model_that_does_not_load_ends_the_server(
    start_server: StartServer, gate: Path, arguments: list[str], message: str
) -> None:
    server = start_server(worker=[*waits_at(gate), *arguments], ready=False)
    gate.touch()

    assert server.process.wait(PATIENCE_S) == 1
    assert server.log.splitlines()[-1] == f"qwell: error: {message}"
    assert "Traceback" not in server.log


def test_a_taken_port(server: ServerProcess, text_folder: Path, tmp_path: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    second = ServerProcess(text_folder, tmp_path / "log", port=port)

    with pytest.raises(AssertionError, match="the server ended"), second:
        pass

    assert second.process.wait(PATIENCE_S) == 1
    assert f"qwell: error: cannot listen on 127.0.0.1 port {port}" in second.log
    assert server.health() == (200, "ok")


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, start_server: StartServer) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{")
    server = start_server(folder=folder, ready=False)

    assert server.process.wait(PATIENCE_S) == 1
    assert server.log.splitlines()[-1].startswith("qwell: error: ")
    assert "Traceback" not in server.log


def test_requests_in_flight_get_503_when_the_engine_dies(start_server: StartServer) -> None:
    server = start_server()
    answers: list[requests.Response] = []

    def complete() -> None:
        body = {"model": "m", "prompt": "hold"}
        answers.append(server.post("/v1/completions", body))

    threads = [threading.Thread(target=complete) for _ in range(3)]
    for thread in threads:
        thread.start()
    server.wait_until(lambda: server.report() == "running=3 aborted=0", "requests in flight")
    os.kill(server.worker_pid(), signal.SIGKILL)
    for thread in threads:
        thread.join(PATIENCE_S)

    assert [answer.status_code for answer in answers] == [503] * 3
    for answer in answers:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "server_error"
        assert int(answer.headers["retry-after"]) > 0


def test_health_says_so_and_a_new_engine_starts(start_server: StartServer, gate: Path) -> None:
    gate.touch()
    server = start_server(worker=waits_at(gate))
    first = server.worker_pid()
    gate.unlink()

    answer = server.post("/v1/completions", {"model": "m", "prompt": "crash"})

    assert answer.status_code == 503
    assert server.health() == (503, "restarting")
    between = server.post("/v1/completions", {"model": "m", "prompt": "say:hi"})
    assert between.status_code == 503
    assert between.headers["retry-after"]
    assert requests.get(f"{server.url}/v1/models", timeout=PATIENCE_S).status_code == 200
    gate.touch()
    server.wait_for_health("ok")
    assert server.complete("say:hi")["choices"][0]["text"] == "hi"
    assert server.worker_pid() != first
    assert "killed by SIGKILL" in server.log


def test_a_stream_that_the_engine_leaves_ends_in_an_error(start_server: StartServer) -> None:
    server = start_server()

    body = {"model": "m", "prompt": "say:some text crash", "stream": True, "max_tokens": 50}
    answer = server.post("/v1/completions", body)

    events = answer.text.strip().split("\n\n")
    assert answer.status_code == 200
    assert events[-1] == "data: [DONE]"
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    texts = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["text"] for chunk in texts) == "some text "

    server.wait_for_health("ok")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model="m", prompt="say:x crash", stream=True)
        with pytest.raises(openai.APIError, match="engine died"):
            list(stream)


def test_openai_client_outlives_a_crash(start_server: StartServer) -> None:
    server = start_server()
    os.kill(server.worker_pid(), signal.SIGKILL)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5) as client:
        assert client.completions.create(model="m", prompt="say:hi").choices[0].text == "hi"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_messages_to_a_process_that_has_just_died(text_folder: Path) -> None:
    async def talk() -> list[object]:
        options = EngineOptions(model=str(text_folder))
        process = await EngineProcess.spawn((sys.executable, "-c", "pass"), options)
        wait_until(lambda: not is_alive(process.pid))  # the event loop has not heard of it yet
        for number in range(10):
            process.send(Abort(str(number)))
        heard: list[object] = []
        await process.listen(heard.append)
        assert await process.stop() == "exit status 0"
        return heard

    assert asyncio.run(talk()) == []


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_stop_when_idle(start_server: StartServer, signal_number: signal.Signals) -> None:
    server = start_server()
    worker = server.worker_pid()

    assert server.stop(signal_number) == 0

    assert not is_alive(worker)
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


def test_stop_while_loading(start_server: StartServer, gate: Path) -> None:
    server = start_server(worker=waits_at(gate), ready=False)
    server.wait_until(lambda: len(children(server)) == 1, "engine process")
    worker = server.worker_pid()

    assert server.stop() == 0
    assert not is_alive(worker)


def children(server: ServerProcess) -> list[str]:
    pid = server.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_requests_in_flight_may_finish_at_stop(start_server: StartServer) -> None:
    server = start_server()
    texts: list[str] = []

    def complete() -> None:
        answer = server.complete("slow:" + "x" * 100, max_tokens=200)
        texts.append(answer["choices"][0]["text"])

    thread = threading.Thread(target=complete)
    thread.start()
    server.wait_until(lambda: server.report() == "running=1 aborted=0", "request in flight")

    assert server.stop() == 0
    thread.join(PATIENCE_S)
    assert texts == ["x" * 100]


def test_while_running_requests_finish(start_server: StartServer) -> None:
    server = start_server()
    texts: list[str] = []

    def complete() -> None:
        texts.append(server.complete("slow:" + "x" * 200, max_tokens=300)["choices"][0]["text"])

    thread = threading.Thread(target=complete)
    thread.start()
    server.wait_until(lambda: server.report() == "running=1 aborted=0", "request in flight")
    with requests.Session() as session:
        session.get(f"{server.url}/v1/models", timeout=PATIENCE_S)  # a connection that is open
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_health("draining")
        refused = session.post(
            f"{server.url}/v1/completions",
            json={"model": "m", "prompt": "say:late"},
            timeout=PATIENCE_S,
        )
    thread.join(PATIENCE_S)

    error = error_of(refused, 503)
    assert error["code"] == "server_draining"
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["connection"] == "close"
    assert texts == ["x" * 200]
    assert server.process.wait(PATIENCE_S) == 0


def test_systemd_is_told(
    start_server: StartServer, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        server = start_server(worker=waits_at(gate), ready=False)
        server.wait_for_health("loading")
        with pytest.raises(BlockingIOError):
            systemd.recv(100)

        gate.touch()
        systemd.settimeout(PATIENCE_S)
        assert systemd.recv(100) == b"READY=1"
        assert server.stop() == 0
        assert systemd.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("second_signal", [False, True])
def test_requests_that_do_not_finish_at_stop_are_told_so(
    start_server: StartServer, second_signal: bool
) -> None:
    server = start_server(drain_seconds=PATIENCE_S if second_signal else 0.5)
    answers: dict[bool, requests.Response] = {}

    def complete(stream: bool) -> None:
        body = {"model": "m", "prompt": "hold", "stream": stream}
        answers[stream] = server.post("/v1/completions", body)

    threads = [threading.Thread(target=complete, args=(stream,)) for stream in (False, True)]
    for thread in threads:
        thread.start()
    server.wait_until(lambda: server.report() == "running=2 aborted=0", "requests in flight")
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_health("draining")

    assert (server.stop() if second_signal else server.process.wait(PATIENCE_S)) == 3
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers[False].status_code == 503
    assert "shutting down" in answers[False].json()["error"]["message"]
    assert "shutting down" in answers[True].text
    assert answers[True].text.endswith("data: [DONE]\n\n")
    assert "Traceback" not in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_engine_does_not_outlive_a_killed_server(start_server: StartServer) -> None:
    server = start_server()
    worker = server.worker_pid()

    server.stop(signal.SIGKILL)

    wait_until(lambda: not is_alive(worker))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_process_has_no_torch(server: ServerProcess) -> None:
    server.complete("say:hi")
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()

    assert "python" in maps
    assert "libtorch" not in maps
