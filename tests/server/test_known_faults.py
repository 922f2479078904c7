"""Faults that other servers had, where no other test stands for them; docs/security.md has all."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from chat_templates import QWEN3, server_of
from checkpoints import make_checkpoint
from serving import PATIENCE_S, ServerProcess, error_of
from tiny_tokenizers import tiny_backend

import qwell.kernels
import qwell.runtime
import qwell.server
from qwell.runtime.messages import FrameReader, FromEngine, ToEngine
from qwell.server.errors import as_http_error

StartServer = Callable[..., ServerProcess]
CODE_LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml"}
CODE_LOADERS |= {"eval", "exec", "torch.load", "torch.jit.load"}


def test_code_beside_the_weights_does_not_run(tmp_path: Path) -> None:
    folder, witness = tmp_path / "checkpoint", tmp_path / "witness"
    backend = tiny_backend()
    make_checkpoint(folder, vocab_size=backend.get_vocab_size())
    backend.save(str(folder / "tokenizer.json"))
    code = f"open({str(witness)!r}, 'w').close()\n"
    for name in ("modeling_x.py", "tokenization_x.py", "configuration_x.py", "__init__.py"):
        (folder / name).write_text(code)
    config = json.loads((folder / "config.json").read_text())
    classes = ["AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"]
    config["auto_map"] = dict.fromkeys(classes, "modeling_x.X")
    (folder / "config.json").write_text(json.dumps(config))

    with ServerProcess(folder, tmp_path / "log", worker=()) as server:
        assert server.complete("hello", max_tokens=2)["usage"]["completion_tokens"] == 2

    assert not witness.exists()


def test_no_module_can_load_code_from_data() -> None:
    found, scanned = [], 0
    for package in (qwell.kernels, qwell.runtime, qwell.server):
        for path in Path(package.__path__[0]).rglob("*.py"):
            scanned += 1
            for node in ast.walk(ast.parse(path.read_text())):
                if code_loaders(node):
                    found.append(f"{path}: {ast.unparse(node)}")
    assert scanned > 50
    assert found == []


def code_loaders(node: ast.AST) -> set[str]:
    """What a piece of a program uses that makes code of data."""
    if isinstance(node, ast.Import):
        return CODE_LOADERS & {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return CODE_LOADERS & {(node.module or "").split(".")[0]}
    if isinstance(node, ast.Call):
        return CODE_LOADERS & {ast.unparse(node.func)}
    return set()


class Attack:
    """Unpickled, it leaves a file."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self._witness), "w")


@pytest.mark.parametrize("direction", [ToEngine, FromEngine])
def test_a_pickle_in_the_pipe_is_refused(tmp_path: Path, direction: object) -> None:
    body = pickle.dumps(Attack(tmp_path / "witness"))

    with pytest.raises(msgspec.MsgspecError):
        FrameReader(direction).feed(len(body).to_bytes(4, "little") + body)

    assert not (tmp_path / "witness").exists()


def test_an_unexpected_error_tells_nothing() -> None:
    error = as_http_error(RuntimeError("/srv/secret/path"))

    assert (error.status, str(error)) == (500, "Internal server error")


def test_many_headers(server: ServerProcess) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n")
        try:
            for number in range(20_000):
                connection.sendall(b"X-%d: y\r\n" % number)
            answer = connection.recv(100)
        except ConnectionError:
            answer = b""

    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.health() == (200, "ok")


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"chat_template": "{{ ''.__class__ }}"},
    ],
)
def test_requests_do_not_choose_how_templates_render(
    server: ServerProcess, fields: dict[str, Any]
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "say:x"}], **fields}

    error = error_of(server.post("/v1/chat/completions", body), 400)

    assert str(error["param"]).startswith(next(iter(fields)))


HUGE = "(((a{1,9999}){1,9999}){1,9999})"


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_of(QWEN3, tmp_path_factory.mktemp("tools")) as running:
        yield running


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$["}}},
        {"type": "object", "properties": {"a": {"type": "no such type"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": HUGE}}},
        {"type": "string", "pattern": HUGE},
        {"$ref": "#"},
    ],
)
def test_a_malformed_tool_schema_costs_no_engine(with_tools: ServerProcess, schema: Any) -> None:
    worker = with_tools.worker_pid()
    function = {"name": "f", "parameters": schema}
    messages = [{"role": "user", "content": "say:x"}]

    for strict, choice in ((False, "auto"), (False, "required"), (True, "auto")):
        tool = {"type": "function", "function": {**function, "strict": strict}}
        body = {"model": "m", "messages": messages, "tools": [tool], "tool_choice": choice}
        answer = with_tools.post("/v1/chat/completions", body)
        if answer.status_code != 200:
            assert str(error_of(answer, 400)["param"]).startswith("tools")

    assert with_tools.worker_pid() == worker
    assert with_tools.complete("say:hi")["choices"][0]["text"] == "hi"


def test_a_stopped_engine_holds_up_no_other_route(start_server: StartServer) -> None:
    server = start_server()
    worker = server.worker_pid()
    texts: list[str] = []

    def complete() -> None:
        texts.append(server.complete("slow:" + "x" * 50, max_tokens=100)["choices"][0]["text"])

    thread = threading.Thread(target=complete)
    thread.start()
    server.wait_until(lambda: server.report().startswith("running=1 "), "request in flight")
    os.kill(worker, signal.SIGSTOP)
    try:
        assert server.health() == (200, "ok")
        assert server.post("/tokenize", {"prompt": "abc"}).status_code == 200
        assert requests.get(f"{server.url}/v1/models", timeout=PATIENCE_S).status_code == 200
    finally:
        os.kill(worker, signal.SIGCONT)
    thread.join(PATIENCE_S)

    assert texts == ["x" * 50]
    assert server.worker_pid() == worker


def test_the_security_page_names_tests_that_exist() -> None:
    tests = Path(__file__).parents[1]
    source, missing, named = "", [], 0
    page = (tests.parent / "docs" / "security.md").read_text()
    for file, names in re.findall(r"`((?:server|unit)/\w+\.py)?((?:::\w+)*)`", page):
        if file:
            source = (tests / file).read_text()
        for name in names.split("::")[1:]:
            named += 1
            if not re.search(rf"^ *(?:def|class) {name}\b", source, flags=re.MULTILINE):
                missing.append(name)
    assert named > 30
    assert missing == []
