"""silu_mul in C++ for CPUs: silu_mul_kernel.cpp, one unit an instruction set."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_cpu, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.native.runner import Runner
from qwell.kernels.ops import SiluMul


def bind(runner: Runner) -> SiluMul:
    """silu_mul on a runner, for float32: gate_up [T, 2 I] = gate | up -> [T, I].

    Raises KernelError at a call whose tensor is not a contiguous float32 CPU tensor of that shape.
    """

    def silu_mul(gate_up: Tensor) -> Tensor:
        if gate_up.dim() != 2 or gate_up.shape[1] == 0 or gate_up.shape[1] % 2:
            raise KernelError(
                f"silu_mul: gate_up must have shape [T, 2 I >= 2], got {tuple(gate_up.shape)}"
            )
        if gate_up.dtype != torch.float32:
            raise KernelError(f"silu_mul: gate_up must be torch.float32, got {gate_up.dtype}")
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        check_tensor("silu_mul", "gate_up", gate_up, gate_up, (rows, 2 * width))
        check_cpu("silu_mul", "gate_up", gate_up)
        y = runner.empty(gate_up, rows, width)
        call = _native.SiluMulCall(
            gate_up=gate_up.data_ptr(), y=y.data_ptr(), rows=rows, width=width
        )
        runner.run(call, y)
        return y

    return silu_mul
