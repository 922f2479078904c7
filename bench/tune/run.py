"""`qwell bench kernels --tune OP`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import triton

from qwell.bench.gpu.fused_calls import FusedCalls
from qwell.bench.gpu.timing import timer_for
from qwell.bench.tune.report import table
from qwell.bench.tune.tables import SPACES
from qwell.bench.tune.trial import Rig
from qwell.bench.tune.tune import tune
from qwell.kernels.fused_ops import FusedOps
from qwell.kernels.ops import Ops
from qwell.kernels.registry import build_fused_ops, build_ops
from qwell.kernels.triton.launch import arch_of, check_gpu
from qwell.runtime.errors import EngineStartError


def run_tuning(op: str) -> None:
    """Tune the tables of an op of SPACES for the GPU at hand, and print what was tried.

    Raises EngineStartError without a GPU, KernelError for one that the kernels cannot run on.
    """
    if not torch.cuda.is_available():
        raise EngineStartError("qwell bench kernels --tune needs a GPU, and torch finds none")
    device = torch.device("cuda")
    check_gpu(device)
    build: Callable[[torch.device, torch.dtype], Ops | FusedOps] = (
        _fused_ops if SPACES[op][0].calls is FusedCalls else build_ops
    )
    ops = functools.cache(functools.partial(build, device))
    rig = Rig(arch_of(device), device, ops, timer_for(device))
    measured_on = f"{torch.cuda.get_device_name(device)}, triton {triton.__version__}"
    for tuned in tune(rig, SPACES[op], measured_on):
        print(table(tuned, rig.arch), flush=True)


def _fused_ops(device: torch.device, dtype: torch.dtype) -> FusedOps:
    ops = build_fused_ops(device, dtype)
    assert ops is not None, "check_gpu has let the device pass"
    return ops
