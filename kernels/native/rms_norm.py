"""rms_norm in C++ for CPUs: rms_norm_kernel.cpp, one unit an instruction set."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_rms_norm
from qwell.kernels.errors import KernelError
from qwell.kernels.ops import RmsNorm

_DTYPES = {
    torch.float32: _native.DType.float32,
    torch.bfloat16: _native.DType.bfloat16,
    torch.float16: _native.DType.float16,
}

ISAS: dict[str, _native.Isa] = {isa.name: isa for isa in _native.runnable_isas()}
"""Instruction sets that this machine runs, the best one first."""


def rms_norm_on(isa: _native.Isa) -> RmsNorm:
    """rms_norm bound to one of ISAS; its bits are the same on all of them.

    Raises KernelError at a call whose tensors are not contiguous CPU tensors of one model dtype.
    """

    def rms_norm(
        x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows, width = check_rms_norm(x, weight, residual)
        if x.device.type != "cpu":
            raise KernelError(f"rms_norm: x must be on the CPU, got {x.device}")
        y = torch.empty_like(x)
        s = x if residual is None else torch.empty_like(x)
        _native.rms_norm(
            isa,
            _DTYPES[x.dtype],
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            0 if residual is None else s.data_ptr(),
            rows,
            width,
            eps,
        )
        return y, s

    return rms_norm


rms_norm = rms_norm_on(next(iter(ISAS.values())))
