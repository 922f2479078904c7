"""Runs the sections and keeps what they find."""

from __future__ import annotations

import json
import math
import multiprocessing
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import triton

from qwell.bench.gpu.isolation import Outcome, Section, run_isolated
from qwell.bench.gpu.report import is_sound, table
from qwell.bench.gpu.sections import DTYPE, TOTAL_SECONDS, gpu_sections
from qwell.bench.work import Ceilings
from qwell.kernels.registry import build_ops, describe
from qwell.kernels.triton.launch import check_gpu
from qwell.runtime.errors import EngineStartError

RESULTS = "gpu.json"

UNKNOWN = Ceilings(math.inf, math.inf)
"""What shares are of when the ceilings could not be measured: all of them come out as 0."""


def run_gpu_bench(folder: Path) -> int:
    """Measure on the GPU, write gpu.json into `folder`, print a table; the exit status.

    0 means that every section ran and every result was right. Raises EngineStartError without
    a GPU, KernelError for one that the kernels cannot run on.
    """
    if not torch.cuda.is_available():
        raise EngineStartError("qwell bench gpu needs a GPU, and torch finds none")
    check_gpu(torch.device("cuda"))
    about = machine()
    spawned = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    outcomes = run_sections(gpu_sections(), TOTAL_SECONDS, spawned, folder, about)
    print(table(about, outcomes))
    return 0 if is_sound(outcomes) else 1


def machine() -> dict[str, Any]:
    """What was measured on, and which kernels."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "capability": list(torch.cuda.get_device_capability(0)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "triton": triton.__version__,
        "kernels": describe(build_ops(torch.device("cuda"), DTYPE)),
    }


def run_sections(
    groups: Sequence[Sequence[Section]],
    total_seconds: float,
    processes: BaseContext,
    folder: Path,
    about: Mapping[str, Any],
) -> list[Outcome]:
    """Run the groups one after the other, the sections of a group at once.

    gpu.json is complete after every row: whoever ends the run has what was measured until then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + total_seconds
    outcomes: list[Outcome] = []
    writing = threading.Lock()

    def keep() -> None:
        with writing:
            _write(folder / RESULTS, about, outcomes)

    ceilings = UNKNOWN
    for group in groups:
        left = max(0.0, end - time.monotonic())
        limited = [replace(s, limit_seconds=min(s.limit_seconds, left)) for s in group]
        begun = [Outcome(section.name) for section in group]
        outcomes += begun
        run = partial(run_isolated, ceilings=ceilings, processes=processes, keep=keep)
        with ThreadPoolExecutor(len(group)) as pool:
            for outcome in pool.map(run, limited, begun):
                print(f"{outcome.name}: {_ending(outcome)}", flush=True)
        found = (row for outcome in outcomes for row in outcome.rows)
        ceilings = next((row for row in found if isinstance(row, Ceilings)), UNKNOWN)
        keep()
    return outcomes


def _write(file: Path, about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    results = {"machine": about, "sections": [asdict(outcome) for outcome in outcomes]}
    text = json.dumps(_finite(results), indent=1, allow_nan=False)
    # In one move: a run that is killed does not leave half a file.
    part = file.with_suffix(".part")
    part.write_text(text + "\n")
    part.replace(file)


def _ending(outcome: Outcome) -> str:
    kind = "failed" if outcome.failure else "out of time" if outcome.out_of_time else "done"
    return f"{kind} after {outcome.seconds:.0f} s, {len(outcome.rows)} results"


def _finite(value: Any) -> Any:
    """JSON has no infinities and no NaN: null in their place."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
