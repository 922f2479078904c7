"""Processes of ours run nothing that lies in the working directory, which may be a checkpoint's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwell.runtime.module_command import module_command
from qwell.server.engine_process import WORKER_COMMAND
from qwell.server.grammar_checker import CHECK_COMMAND

# Of the standard library and not, imported at once and late.
MODULES = ("argparse", "http", "json", "llguidance", "msgspec", "numpy", "runpy", "torch", "qwell")


def runs_what_lies_about(command: Sequence[str], folder: Path) -> bool:
    witness = folder / "witness"
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return witness.exists()


@pytest.mark.parametrize(
    "command", [(*WORKER_COMMAND, "--fd=0", "{}"), CHECK_COMMAND, (*module_command("pip"), "-V")]
)
def test_modules_in_the_working_directory_do_not_run(
    command: Sequence[str], tmp_path: Path
) -> None:
    assert not runs_what_lies_about(command, tmp_path)


def test_with_pythons_own_switch_they_would(tmp_path: Path) -> None:
    assert runs_what_lies_about((sys.executable, "-m", "qwell.runtime.worker"), tmp_path)


def test_a_module_gets_its_arguments_and_is_the_main_one(tmp_path: Path) -> None:
    command = (*module_command("json.tool"), "--help")
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "json.tool" in run.stdout
