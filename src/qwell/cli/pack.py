"""`qwell pack`."""

from __future__ import annotations

import argparse

from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.pack import pack_checkpoint


def run(arguments: argparse.Namespace) -> int:
    """Print where the packed weights are, and how large they are."""
    path = pack_checkpoint(resolve_model(arguments.model), arguments.weights)
    print(f"{path} {path.stat().st_size / 2**20:.1f} MiB")
    return 0
