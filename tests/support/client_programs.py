"""Runs client programs, and says what they said when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_PATIENCE_S = 240.0


def run_client(command: Sequence[str | Path], folder: Path, **variables: str) -> str:
    """Run a program in `folder`, with `variables` in its environment; what it prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_PATIENCE_S,
    )
    if done.returncode:
        pytest.fail(f"{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout
