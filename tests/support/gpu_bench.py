"""What the tests of `qwell bench gpu` share: tiny models, stubs, sections run by hand."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small_config import SMALL
from torch import Tensor

from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.calls import Call, Calls, Step
from qwell.bench.gpu.isolation import Section
from qwell.bench.gpu.model import random_model
from qwell.bench.gpu.parity import REFERENCE
from qwell.bench.gpu.run import run_sections
from qwell.bench.kernels.models import Model
from qwell.bench.work import Ceilings
from qwell.kernels.ops import Ops
from qwell.runtime.loader import LoadedModel

CPU = torch.device("cpu")
TINY = Model("tiny", hidden=64, heads=4, kv_heads=2, head_dim=16, mlp=96, vocabulary=512)
MIXED = Step("mixed", TINY, (1, 1, 5, 40), (1, 33, 5, 70))
CEILINGS = Ceilings(bandwidth=1e9, flops=1e10)
ABOUT = {"gpu": "none", "torch": "2", "triton": "3"}


def row_by_row(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """linear whose rows do not depend on their number, as torch's do on CPUs."""
    rows = [REFERENCE.linear(row, weight, bias) for row in x.split(1)]
    return torch.cat(rows) if rows else REFERENCE.linear(x, weight, bias)


BATCH_INVARIANT = replace(REFERENCE, linear=row_by_row)


class StubTimer:
    """Runs the call, and says that it took a millisecond."""

    def seconds(self, run: Callable[[], object]) -> float:
        """Of a call."""
        run()
        return 1e-3


def calls(step: Step, dtype: torch.dtype = torch.bfloat16) -> dict[str, Call]:
    """Calls of the step, by op and case."""
    return {f"{call.op} {call.case}": call for call in Calls(CPU, dtype).of(step)}


def tiny_model(ops: Ops = REFERENCE) -> LoadedModel:
    """Random weights of Qwen3's form."""
    return random_model(true_config("qwen3-0.6b") | SMALL, ops, 2048, 512, torch.bfloat16, CPU)


def run_at_once(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """In the place of a capture."""
    step()
    return step


def ticking() -> Callable[[], float]:
    """A clock that a second passes on whenever it is read."""
    now = iter(range(1_000_000))
    return lambda: float(next(now))


def run(tmp_path: Path, *groups: tuple[Section, ...]) -> tuple[Any, list[Any]]:
    """What sections leave in the file, and their outcomes."""
    # Forked, because spawned ones could not import a test's file.
    processes = multiprocessing.get_context("fork")
    outcomes = run_sections(groups, 100.0, processes, tmp_path, ABOUT)
    return json.loads((tmp_path / "gpu.json").read_text()), outcomes
