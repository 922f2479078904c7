"""Servers that the client programs talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_templates import QWEN2_5, server_of
from serving import ServerProcess

from qwell.runtime.demo_model import demo_model_dir


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The scripted engine: a prompt says what its answer is, see fake_worker.py."""
    with server_of(QWEN2_5, tmp_path_factory.mktemp("scripted")) as running:
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
