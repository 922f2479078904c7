"""`qwell bench gpu` and `qwell bench make-checkpoint`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qwell.bench.checkpoints import make_checkpoint, true_config


def run_gpu(arguments: argparse.Namespace) -> int:
    """Measure on the GPU; status 1 if something failed or was wrong."""
    # Imported here: make-checkpoint need not wait for Triton.
    from qwell.bench.gpu.run import run_gpu_bench

    return run_gpu_bench(Path(arguments.out))


def run_make_checkpoint(arguments: argparse.Namespace) -> int:
    """Write random weights of a true config."""
    make_checkpoint(true_config(arguments.name), Path(arguments.folder))
    return 0
