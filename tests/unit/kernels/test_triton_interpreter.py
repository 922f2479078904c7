"""Runs the tests of interpreter/ in a process where Triton interprets instead of compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_kernels_in_the_interpreter():
    folder = Path(__file__).parent / "interpreter"
    # -I: the repository root must not get onto sys.path, where `kernels` would be found.
    run = subprocess.run(
        # Two at a time: interpreted kernels keep one core busy each.
        [*(sys.executable, "-I", "-m", "pytest"), *("-q", "-n2", "-p", "no:cacheprovider"), folder],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
