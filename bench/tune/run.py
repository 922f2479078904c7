"""`qwell bench kernels --tune OP`."""

from __future__ import annotations

import functools

import torch
import triton

from qwell.bench.gpu.timing import timer_for
from qwell.bench.tune.report import table
from qwell.bench.tune.tables import SPACES
from qwell.bench.tune.trial import Rig
from qwell.bench.tune.tune import tune
from qwell.kernels.registry import build_ops
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
    ops = functools.cache(functools.partial(build_ops, device))
    rig = Rig(arch_of(device), device, ops, timer_for(device))
    measured_on = f"{torch.cuda.get_device_name(device)}, triton {triton.__version__}"
    for tuned in tune(rig, SPACES[op], measured_on):
        print(table(tuned, rig.arch), flush=True)
