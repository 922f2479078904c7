"""`qwell bench`."""

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
from qwell.kernels.errors import KernelError


def run_kernels(arguments: argparse.Namespace) -> int:
    """Print the static report; status 1 if a kernel breaks a limit or does not compile."""
    if arguments.arch not in (*MULTIPROCESSORS, "all"):
        arguments.fail(f"argument --arch: must be one of {', '.join(MULTIPROCESSORS)}, all")
    if arguments.op not in (*CASES, None):
        arguments.fail(f"argument --op: must be one of {', '.join(CASES)}")
    archs = MATRIX if arguments.arch == "all" else (arguments.arch,)
    ops = tuple(CASES) if arguments.op is None else (arguments.op,)
    workers = min(os.cpu_count() or 1, len(archs) * len(ops))
    try:
        rows = static_report(archs, ops, workers)
    except KernelError as error:
        print(f"qwell: error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    if arguments.json is not None:
        facts = [dataclasses.asdict(row) for row in rows]
        Path(arguments.json).write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if any(row.faults for row in rows) else 0
