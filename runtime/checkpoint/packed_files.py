"""The files that keep packed weights: which there are, and removal of those nobody uses.

Torch-free.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from qwell.runtime.cache_dir import cache_dir

WHOLE, PART, LOCK = ".safetensors", ".part", ".lock"
"""Suffixes of a file that is kept, of one that is being written, of the lock on both."""

_DAY_S = 24 * 60 * 60


class KeptFile(NamedTuple):
    """A file of the folder, whole or what a killed process has left of one.

    Attributes:
        size: in bytes.
        used_s: when a start has last made or mapped it, in seconds since the epoch.
    """

    path: Path
    size: int
    used_s: float

    @property
    def checkpoint(self) -> str:
        """The folder of weights that it was made from; empty where it does not say."""
        # Imported here: GPUs run from a checkout where safetensors is not installed.
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "numpy") as file:
                metadata: dict[str, str] = file.metadata() or {}
        except (SafetensorError, OSError):
            return ""
        return metadata.get("checkpoint", "")


def packed_dir() -> Path:
    """The folder that the files are kept in."""
    return cache_dir() / "packed"


def kept_files(folder: Path) -> list[KeptFile]:
    """All of a folder, which need not be there; those used last come first."""
    return sorted(_files(folder), key=lambda file: file.used_s, reverse=True)


def remove_unused(folder: Path, days: int) -> list[KeptFile]:
    """Remove files that no start has used for so many days; those that were removed.

    A process that has mapped one keeps what it has mapped. One that is being written stays.
    """
    latest = time.time() - days * _DAY_S
    return [file for file in kept_files(folder) if file.used_s <= latest and _remove(file.path)]


def _files(folder: Path) -> Iterator[KeptFile]:
    for path in folder.glob("*"):
        if path.suffix in (WHOLE, PART):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process has just renamed or removed it
                continue
            yield KeptFile(path, status.st_size, status.st_mtime)


def _remove(path: Path) -> bool:
    # The lock's own file stays: another process may have it open, and wait for it.
    try:
        with FileLock(path.with_suffix(LOCK), timeout=0):
            path.unlink(missing_ok=True)
    except Timeout:
        return False
    return True
