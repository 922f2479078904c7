"""The client programs of the page that describes /v1/models, run as they stand there.

They name localhost:8000, so the server of these tests has to have that port.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from serving import PATIENCE_S, ServerProcess

EXAMPLES = Path(__file__).with_name("examples")
PORT = 8000


@pytest.fixture(scope="module", autouse=True)
def page_server(
    text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.fail(f"port {PORT} is in use; the examples on the page need it")
    log = tmp_path_factory.mktemp("page") / "log"
    with ServerProcess(text_folder, log, port=PORT, model_name="Qwen/Qwen-7B-Chat") as running:
        yield running


def run_program(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} must be installed to run the page's examples"
    return path


def test_requests_example() -> None:
    output = run_program(sys.executable, EXAMPLES / "list_models_requests.py")

    assert output.splitlines() == ["Available models: 1", "- gpt-3.5-turbo"]


def test_old_openai_client_example(old_openai_python: Path) -> None:
    before = int(time.time())

    lines = run_program(old_openai_python, EXAMPLES / "list_models_openai_0_28.py").splitlines()

    assert lines[0] == "Model ID: gpt-3.5-turbo"
    assert before <= int(lines[1].removeprefix("Created: ")) <= time.time()
    assert lines[2:] == ["Owned by: owner"]


def test_javascript_example() -> None:
    output = run_program(program("node"), EXAMPLES / "list_models.js")

    assert output.splitlines() == ["Available models:", "- gpt-3.5-turbo"]


def test_curl_example() -> None:
    before = int(time.time())

    answer = json.loads(run_program(program("sh"), EXAMPLES / "list_models.sh"))

    (card,) = answer["data"]
    assert before <= card.pop("created") <= time.time()
    assert card == {
        "id": "gpt-3.5-turbo",
        "object": "model",
        "owned_by": "owner",
        "root": None,
        "parent": None,
        "permission": None,
    }
    assert answer["object"] == "list"
    assert set(answer) == {"object", "data"}


def test_the_log_names_the_checkpoint_and_the_list_does_not(page_server: ServerProcess) -> None:
    answer = requests.get(f"{page_server.url}/v1/models", timeout=PATIENCE_S)

    assert "Qwen/Qwen-7B-Chat" in page_server.log
    assert "Qwen/Qwen-7B-Chat" not in answer.text
