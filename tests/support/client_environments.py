"""Environments of their own for programs written for OpenAI's API: build/clients/NAME.

Each holds what tests/clients/NAME asks for, and is kept for later runs until that changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

CLIENTS = Path(__file__).parents[1] / "clients"
_ENVIRONMENTS = Path(__file__).parents[2] / "build" / "clients"


def client_python(name: str) -> Path:
    """A Python that has exactly what tests/clients/NAME/requirements.txt asks for."""
    requirements = CLIENTS / name / "requirements.txt"

    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", folder)
        pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
        _run(*pip, "install", "--quiet", "--requirement", requirements)

    return _environment(name, requirements.read_text() + sys.version, install) / "bin" / "python"


def client_modules(name: str) -> Path:
    """A folder whose scripts may import what tests/clients/NAME/package.json asks for."""
    package = CLIENTS / name / "package.json"

    def install(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(package, folder)
        npm = ("npm", "--prefix", folder, "install", "--ignore-scripts", "--no-audit", "--no-fund")
        _run(*npm)

    return _environment(name, package.read_text(), install)


def _environment(name: str, contents: str, install: Callable[[Path], None]) -> Path:
    """build/clients/NAME, installed anew unless its last installation was of these contents."""
    folder = _ENVIRONMENTS / name
    digest = hashlib.sha256(contents.encode()).hexdigest()
    complete = folder / "installed"
    _ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with FileLock(_ENVIRONMENTS / f"{name}.lock"):
        if not (complete.exists() and complete.read_text() == digest):
            shutil.rmtree(folder, ignore_errors=True)
            install(folder)
            complete.write_text(digest)
    return folder


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
