"""`qwell bench kernels`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from qwell.bench.kernels.cases import CASES
from qwell.bench.kernels.chips import MULTIPROCESSORS
from qwell.bench.kernels.static import MATRIX, static_report, table
from qwell.bench.tune.run import run_tuning
from qwell.bench.tune.tables import SPACES
from qwell.kernels.errors import KernelError

DEFAULT_ARCH = "sm_90"


def run_kernels(arguments: argparse.Namespace) -> int:
    """The static report, or a search for better launch settings; status 1 if anything is wrong."""
    try:
        return _report(arguments) if arguments.tune is None else _tune(arguments)
    except KernelError as error:
        print(f"qwell: error: {error}", file=sys.stderr)
        return 1


def _tune(arguments: argparse.Namespace) -> int:
    for option in ("arch", "op", "json"):
        if getattr(arguments, option) is not None:
            arguments.fail(f"argument --{option}: goes with --static, not with --tune")
    if arguments.tune not in SPACES:
        arguments.fail(f"argument --tune: there are launch tables for {', '.join(SPACES)}")
    run_tuning(arguments.tune)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    arch = arguments.arch or DEFAULT_ARCH
    if arch not in (*MULTIPROCESSORS, "all"):
        arguments.fail(f"argument --arch: must be one of {', '.join(MULTIPROCESSORS)}, all")
    if arguments.op not in (*CASES, None):
        arguments.fail(f"argument --op: must be one of {', '.join(CASES)}")
    archs = MATRIX if arch == "all" else (arch,)
    ops = tuple(CASES) if arguments.op is None else (arguments.op,)
    workers = min(os.cpu_count() or 1, len(archs) * len(ops))
    rows = static_report(archs, ops, workers)
    print(table(rows))
    if arguments.json is not None:
        facts = [dataclasses.asdict(row) for row in rows]
        Path(arguments.json).write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if any(row.faults for row in rows) else 0
