"""The `qwell` command as a user runs it: a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qwell.runtime.demo_model import demo_model_dir

COMMAND = [sys.executable, "-m", "qwell"]
# One thread: the tests share their machine. A wide terminal: help lines stay whole.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's folder, made before the first test's clock runs."""
    return demo_model_dir()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a shell starts in the background may ignore SIGINT, and its children with it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def qwell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `qwell` with some arguments to its end; keyword arguments add to the environment."""

    def run(*arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            env=ENVIRONMENT | variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )

    return run


@pytest.fixture
def start_qwell() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `qwell` with pipes; what still runs when the test ends is killed."""
    with ExitStack() as stack:

        def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                text=True,
                encoding="utf-8",
                **settings,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start
