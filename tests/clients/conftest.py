"""Servers that the client programs talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ServerProcess
from text_folder import write_text_folder

from qwell.runtime.demo_model import demo_model_dir


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The scripted engine: a prompt says what its answer is, see fake_worker.py."""
    folder = tmp_path_factory.mktemp("text")
    write_text_folder(folder)
    with ServerProcess(folder, folder / "log") as running:
        yield running


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The demo model, as `qwell serve` has it."""
    log = tmp_path_factory.mktemp("demo") / "log"
    with ServerProcess(demo_model_dir(), log, worker=(), is_demo=True) as running:
        yield running


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo model's checkpoint."""
    return demo_model_dir()
