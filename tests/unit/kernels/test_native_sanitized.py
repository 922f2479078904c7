"""Builds the native kernels with sanitizers and runs their C++ tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    options = [
        "-DQWELL_NATIVE_TESTS=ON",
        "-DQWELL_SANITIZE=ON",
        "-DQWELL_WERROR=ON",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    ]
    _run("cmake", "-S", str(ROOT), "-B", str(folder), *options)
    _run("cmake", "--build", str(folder), "--parallel", "2")
    return folder


def _run(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.mark.parametrize("name", ["pack", "rms_norm"])
def test_native_kernels_pass_under_the_sanitizers(build, name):
    last = _run(str(build / "tests" / "native" / f"test_{name}")).splitlines()[-1]
    counts = re.fullmatch(r"(\d+) passed, 0 failed", last)
    assert counts is not None, last
    assert int(counts[1]) > 0


def test_units_of_an_instruction_set_export_only_its_namespace(build):
    """Other symbols could be merged with a copy for another set, and run where they must not."""
    units = sorted(build.glob("CMakeFiles/qwell_kernels_*.dir/**/*.o"))
    assert units
    for unit in units:
        isa = re.search(r"qwell_kernels_(\w+)\.dir", str(unit))[1]
        symbols = _run("nm", "--demangle", "--defined-only", "--extern-only", str(unit))
        exported = [line.split(maxsplit=2)[2] for line in symbols.splitlines()]
        assert exported
        assert all(name.startswith(f"qwell::{isa}::") for name in exported), exported
