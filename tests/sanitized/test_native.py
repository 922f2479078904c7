"""Builds the native code with sanitizers and runs its C++ tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# To compile every kernel for every instruction set takes two cores minutes.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    _build(folder, sanitize="address,undefined", target="all")
    return folder


def _build(folder: Path, *, sanitize: str, target: str) -> None:
    options = [
        "-DQWELL_NATIVE_TESTS=ON",
        f"-DQWELL_SANITIZE={sanitize}",
        "-DQWELL_WERROR=ON",
        # More optimisation takes the compiler minutes with the sanitizers' checks in the way.
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1 -g1",
    ]
    _run("cmake", "-S", str(ROOT), "-B", str(folder), *options)
    _run("cmake", "--build", str(folder), "--target", target, "--parallel", "2")


def _run(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{' '.join(command)}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def _passes(program: Path) -> None:
    last = _run(str(program)).splitlines()[-1]
    counts = re.fullmatch(r"(\d+) passed, 0 failed", last)
    assert counts is not None, last
    assert int(counts[1]) > 0


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "tests" / "native").glob("test_*.cpp"))
)
def test_native_code_passes_under_the_sanitizers(build, name):
    _passes(build / "tests" / "native" / name)


def test_the_pool_passes_under_the_thread_sanitizer(tmp_path):
    _build(tmp_path, sanitize="thread", target="test_pool")
    _passes(tmp_path / "tests" / "native" / "test_pool")


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
