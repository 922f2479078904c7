"""Each client in an environment of its own: its check, and what docs/clients.md says of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from client_docs import documented
from client_environments import CLIENTS, client_modules, client_python
from client_programs import run_client
from serving import ServerProcess

large = pytest.mark.large_install
PYTHON_CLIENTS = {
    "openai_0_28": "openai 0.28.1",
    "langchain_openai": "langchain-openai",
    "litellm": "litellm",
}


def parameters(*names: str) -> list[object]:
    return [pytest.param(name, marks=large if name == "litellm" else ()) for name in names]


@pytest.mark.parametrize("name", parameters("llm", *PYTHON_CLIENTS))
def test_python_client(name: str, scripted: ServerProcess, tmp_path: Path) -> None:
    check = CLIENTS / name / "check.py"

    run_client([client_python(name), check], tmp_path, QWELL_URL=scripted.url)


@pytest.fixture(scope="session")
def npm_folder() -> Path:
    """Where JavaScript finds the npm package."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    return client_modules("openai_npm")


def test_npm_client(scripted: ServerProcess, npm_folder: Path) -> None:
    shutil.copy(CLIENTS / "openai_npm" / "check.js", npm_folder)

    run_client(["node", "--test", "check.js"], npm_folder, QWELL_URL=scripted.url)


@pytest.mark.parametrize("name", parameters(*PYTHON_CLIENTS))
def test_documented_python(name: str, demo: ServerProcess, tmp_path: Path) -> None:
    code = documented(PYTHON_CLIENTS[name], demo.url)["python"]

    assert run_client([client_python(name), "-c", code], tmp_path).strip()


def test_documented_openai(demo: ServerProcess, tmp_path: Path) -> None:
    code = documented("openai", demo.url)["python"]

    assert run_client([sys.executable, "-c", code], tmp_path).strip()


def test_documented_npm(demo: ServerProcess, npm_folder: Path) -> None:
    code = documented("openai for JavaScript", demo.url)["js"]

    assert run_client(["node", "--input-type=module", "-e", code], npm_folder).strip()


def test_documented_llm(demo: ServerProcess, tmp_path: Path) -> None:
    code = documented("llm", demo.url)
    (tmp_path / "extra-openai-models.yaml").write_text(code["yaml"])
    variables = {
        "LLM_USER_PATH": str(tmp_path),
        "OPENAI_API_KEY": "none",
        "PATH": os.pathsep.join([str(client_python("llm").parent), os.environ["PATH"]]),
    }

    assert run_client(["sh", "-c", code["sh"]], tmp_path, **variables).strip()
