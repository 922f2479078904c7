"""The C++ tests, built for an architecture and run on its processors by QEMU's user emulation."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE_TESTS = sorted(path.stem for path in (ROOT / "tests" / "native").glob("test_*.cpp"))


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; keyword arguments add to the environment."""
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def need(program: str, package: str) -> str:
    """A program's name; the test is skipped where it is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"no {program} (Debian: {package})")
    return program


def need_x86_emulator() -> str:
    """The name of one that has AVX2; the test is skipped without."""
    if platform.machine() != "x86_64":
        pytest.skip("this machine is not x86-64")
    name = need("qemu-x86_64", "qemu-user")
    version = re.search(r"version (\d+)\.(\d+)", run(name, "--version").stdout)
    assert version is not None
    if (int(version[1]), int(version[2])) < (7, 2):
        pytest.skip(f"QEMU {version[1]}.{version[2]} does not emulate AVX2, 7.2 does")
    return name


def build(folder: Path, *options: str) -> Path:
    """Compile the C++ tests with further options of cmake; the folder of the programs."""
    # More optimisation takes the compiler longer than it saves the emulator.
    mode = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", "-DQWELL_WERROR=ON"]
    for command in (
        ["-S", str(ROOT), "-B", str(folder), "-DQWELL_NATIVE_TESTS=ON", *mode, *options],
        ["--build", str(folder), "--parallel", "2"],
    ):
        cmake = run("cmake", *command)
        assert cmake.returncode == 0, cmake.stdout + cmake.stderr
    return folder / "tests" / "native"


@dataclass(frozen=True)
class Machine:
    """Programs of an architecture, and what runs them."""

    emulator: Sequence[str]
    programs: Path

    def run(self, cpu: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program on one of the emulator's processors."""
        return run(*self.emulator, "-cpu", cpu, str(self.programs / program), *arguments)

    def assert_runs(self, cpu: str, isas: list[str]) -> None:
        """These are the instruction sets that kernels are chosen from, the best one first."""
        printed = self.run(cpu, "isas")
        assert printed.returncode == 0, printed.stderr
        assert printed.stdout.split() == isas

    def assert_refuses(self, cpu: str, isa: str) -> None:
        """Proof that a test would end at an instruction which the processor lacks."""
        assert self.run(cpu, "isas", isa).returncode == -signal.SIGILL

    def assert_passes(self, cpu: str, test: str) -> None:
        """A C++ test finds nothing wrong."""
        ended = self.run(cpu, test)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        counts = re.fullmatch(r"(\d+) passed, 0 failed", ended.stdout.splitlines()[-1])
        assert counts is not None, ended.stdout
        assert int(counts[1]) > 0
