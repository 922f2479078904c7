"""Naming a model: folders, ids against a local stand-in of the hub's HTTP interface, mistakes.

huggingface_hub reads its HF_* variables when it is imported, so ids resolve in a subprocess.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
UNWANTED = {
    "README.md": b"readme",
    "modeling_qwen.py": b"raise SystemExit('code of a checkpoint must never run')",
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"gguf",
    "onnx/model.safetensors": b"onnx",
    "original/config.json": b"{}",
    "extra.safetensors": b"not named by the index",
}


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}).encode()


REPOSITORIES: dict[str, dict[str, bytes]] = {
    "maker/sharded": {
        **dict.fromkeys(SMALL, b"{}"),
        "chat_template.jinja": b"{{ messages }}",
        **{name: name.encode() * 1000 for name in SHARDS},
        "model.safetensors.index.json": index(*SHARDS),
        **UNWANTED,
    },
    "maker/single": {
        "config.json": b"{}",
        "qwen.tiktoken": b"",
        "model.safetensors": b"weights",
        "model.safetensors.index.json": index("extra.safetensors"),
        **UNWANTED,
    },
    "maker/torn": {"config.json": b"{}"},
    "maker/refusing": {"config.json": b"{}"},
    "maker/pickled": {"config.json": b"{}", **UNWANTED},
    "maker/hostile": {
        "config.json": b"{}",
        "model.safetensors.index.json": index("../x"),
        "x": b"",
    },
}


class Hub(ThreadingHTTPServer):
    """The routes of the hub that a download takes; `requested` lists the files asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.requested: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _respond(self, *, with_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        api = parts[0] == "api"
        owner, name, route, revision, *rest = [*(parts[2:] if api else parts), *[""] * 4]
        file = "/".join(rest).rstrip("/")
        repository = REPOSITORIES.get(f"{owner}/{name}")
        headers = {"X-Repo-Commit": COMMIT}
        if name == "gated":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        elif name == "broken":
            self._send(500, b"", {}, with_body)
        elif repository is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        elif revision not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
        elif api and route == "revision":
            siblings = [{"rfilename": path} for path in repository]
            info = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(info).encode(), {}, with_body)
        elif api and route == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": self._etag(data)}
                for path, data in repository.items()
            ]
            self._send(200, json.dumps(entries).encode(), {}, with_body)
        elif name == "refusing":
            self._send(403, b"", headers, with_body)
        elif name == "torn" and with_body and not api:
            self._send(200, b"{", {**headers, "Content-Length": "2"}, with_body)
            self.close_connection = True
        elif file in repository:
            self.server.requested.append(file)
            data = repository[file]
            self._send(200, data, {**headers, "ETag": f'"{self._etag(data)}"'}, with_body)
        else:
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"}, with_body)

    @staticmethod
    def _etag(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


RESOLVE = """
import sys
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.errors import QwellError
try:
    print(resolve_model(sys.argv[1]))
except QwellError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Resolver:
    """Runs resolve_model in a process with a cache of its own."""

    def __init__(self, home: Path, endpoint: str) -> None:
        self.home = home
        self.endpoint = endpoint

    def __call__(self, model: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        hub = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint}
        return subprocess.run(
            [sys.executable, "-c", RESOLVE, model],
            env=inherited | hub | variables,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def resolve(hub: Hub, tmp_path: Path) -> Resolver:
    return Resolver(tmp_path / "home", hub.url)


def names(folder: str) -> set[str]:
    root = Path(folder.strip())
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_an_id_brings_the_needed_files_and_no_others(hub: Hub, resolve: Resolver) -> None:
    run = resolve("maker/sharded")
    wanted = {*SMALL, "chat_template.jinja", "model.safetensors.index.json", *SHARDS}
    assert run.returncode == 0, run.stderr
    assert names(run.stdout) == wanted
    assert set(hub.requested) == wanted
    assert (Path(run.stdout.strip()) / SHARDS[1]).read_bytes() == SHARDS[1].encode() * 1000
    assert "100%" in run.stderr  # the progress bar


def test_one_file_of_weights_is_preferred_to_an_index(hub: Hub, resolve: Resolver) -> None:
    run = resolve("maker/single")
    assert {"config.json", "qwen.tiktoken", "model.safetensors"} <= names(run.stdout)
    assert not set(hub.requested) & set(UNWANTED)


def test_offline_takes_the_cache(hub: Hub, resolve: Resolver) -> None:
    first = resolve("maker/sharded")
    hub.requested.clear()
    second = resolve("maker/sharded", HF_HUB_OFFLINE="1")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert not hub.requested


def test_without_network_the_cache_is_enough(resolve: Resolver) -> None:
    first = resolve("maker/sharded")
    assert resolve("maker/sharded", HF_ENDPOINT="http://127.0.0.1:9").stdout == first.stdout


@pytest.mark.parametrize(
    ("model", "variables", "kind", "words"),
    [
        ("maker/absent", {}, "DownloadError", ["no folder 'maker/absent'", "HF_TOKEN", "http://"]),
        ("maker/gated", {}, "DownloadError", ["restricted", "HF_TOKEN"]),
        ("maker/sharded", {"HF_HUB_OFFLINE": "1"}, "DownloadError", ["HF_HUB_OFFLINE", "--model"]),
        (
            "maker/sharded",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "DownloadError",
            ["127.0.0.1:9", "try again", "--model DIR"],
        ),
        ("maker/broken", {}, "DownloadError", ["500", "try again"]),
        ("maker/torn", {}, "DownloadError", ["could not fetch maker/torn", "try again"]),
        ("maker/refusing", {}, "DownloadError", ["did not give them", "403"]),
        ("maker/pickled", {}, "CheckpointError", ["maker/pickled", "safetensors only"]),
        ("maker/hostile", {}, "CheckpointError", ["weight_map", "'../x'"]),
        ("maker/a--b", {}, "CheckpointError", ["no folder 'maker/a--b'"]),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(
    resolve: Resolver, model: str, variables: dict[str, str], kind: str, words: list[str]
) -> None:
    run = resolve(model, **variables)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith(kind), run.stderr
    assert [word for word in words if word not in last] == []
    assert "Traceback" not in run.stderr


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_wins_over_an_id_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maker" / "sharded").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("maker/sharded").resolve() == tmp_path / "maker" / "sharded"


@pytest.mark.parametrize("model", ["absent", "./maker/absent", "a/b/c", "/no/such", "maker/"])
def test_what_is_neither_folder_nor_id_is_named(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"no folder '{model}'.*owner/name"):
        resolve_model(model)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(CheckpointError, match="name is empty"):
        resolve_model("")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"is a file; name the folder"):
        resolve_model(str(tmp_path / "model.safetensors"))
