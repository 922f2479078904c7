"""Each client in an environment of its own: its check, and what docs/clients.md says of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from client_environments import CLIENTS, client_modules, client_python
from serving import ServerProcess

PATIENCE_S = 240.0


def run(command: list[str | Path], folder: Path, **variables: str) -> str:
    """Run a client's program in `folder`; what it prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
    )
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


large = pytest.mark.large_install


@pytest.mark.parametrize(
    "name",
    [
        "openai_0_28",
        "llm",
        pytest.param("langchain_openai", marks=large),
        pytest.param("litellm", marks=large),
    ],
)
def test_python_client(name: str, scripted: ServerProcess, tmp_path: Path) -> None:
    python = client_python(name)

    run([python, CLIENTS / name / "check.py"], tmp_path, QWELL_URL=scripted.url)


def test_openai_npm(scripted: ServerProcess) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder = client_modules("openai_npm")
    shutil.copy(CLIENTS / "openai_npm" / "check.js", folder)

    run(["node", "--test", "check.js"], folder, QWELL_URL=scripted.url)
