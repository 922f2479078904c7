"""`qwell pack`."""

from __future__ import annotations

import argparse
import time

from qwell.runtime.checkpoint.packed_files import (
    KeptFile,
    kept_files,
    packed_dir,
    remove_unused,
)
from qwell.runtime.checkpoint.resolve import resolve_model


def run(arguments: argparse.Namespace) -> int:
    """Print which file was made, or which there are, or which were removed; and how large."""
    if arguments.list:
        for file in kept_files(packed_dir()):
            print(_described(file))
    elif arguments.remove_unused is not None:
        for file in remove_unused(packed_dir(), arguments.remove_unused):
            print(f"removed {file.path} {_mebibytes(file.size)}")
    else:
        # Imported here: torch takes seconds, and a list needs none of it.
        from qwell.runtime.pack import pack_checkpoint

        path = pack_checkpoint(resolve_model(arguments.model), arguments.weights)
        print(f"{path} {_mebibytes(path.stat().st_size)}")
    return 0


def _described(file: KeptFile) -> str:
    day = time.strftime("%Y-%m-%d", time.localtime(file.used_s))
    origin = f" of {file.checkpoint}" if file.checkpoint else ""
    return f"{file.path} {_mebibytes(file.size)} used {day}{origin}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
