"""Files of packed weights: what is told of them, and which may go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from qwell.runtime.checkpoint.packed_files import kept_files, remove_unused

DAY_S = 86400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, days in (
        ("new.safetensors", 1),
        ("old.safetensors", 40),
        ("older.safetensors", 50),
        ("left.part", 60),
        ("old.lock", 70),
        ("notes.txt", 80),
    ):
        path = tmp_path / name
        path.write_bytes(b"x" * days)
        used_s = time.time() - days * DAY_S
        os.utime(path, (used_s, used_s))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_those_used_last_come_first(folder: Path) -> None:
    files = kept_files(folder)
    assert [file.path.stem for file in files] == ["new", "old", "older", "left"]
    assert [file.size for file in files] == [1, 40, 50, 60]
    assert {file.checkpoint for file in files} == {""}
    assert kept_files(folder / "missing") == []


@pytest.mark.parametrize(
    ("days", "left"),
    [
        (0, ["notes.txt"]),
        (2, ["new.safetensors", "notes.txt"]),
        (45, ["new.safetensors", "notes.txt", "old.safetensors"]),
        (
            100,
            ["left.part", "new.safetensors", "notes.txt", "old.safetensors", "older.safetensors"],
        ),
    ],
)
def test_what_was_not_used_goes(folder: Path, days: int, left: list[str]) -> None:
    before = names(folder)
    removed = remove_unused(folder, days)
    assert names(folder) == left
    assert sorted([*left, *(file.path.name for file in removed)]) == before


def test_what_is_being_written_stays(folder: Path) -> None:
    with FileLock(folder / "left.lock"):
        assert [file.path.stem for file in remove_unused(folder, 30)] == ["old", "older"]
    assert [file.path.stem for file in remove_unused(folder, 30)] == ["left"]
