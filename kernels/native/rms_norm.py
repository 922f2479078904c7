"""rms_norm in C++ for CPUs: rms_norm_kernel.cpp, one unit an instruction set."""

from __future__ import annotations

from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_cpu, check_rms_norm
from qwell.kernels.native.runner import DTYPES, Runner
from qwell.kernels.ops import RmsNorm


def bind(runner: Runner) -> RmsNorm:
    """rms_norm on a runner; its bits are the same on every instruction set.

    Raises KernelError at a call whose tensors are not contiguous CPU tensors of one model dtype.
    """

    def rms_norm(
        x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows, width = check_rms_norm(x, weight, residual)
        check_cpu("rms_norm", "x", x)
        y = runner.empty(x, rows, width)
        s = x if residual is None else runner.empty(x, rows, width)
        call = _native.RmsNormCall(
            dtype=DTYPES[x.dtype],
            x=x.data_ptr(),
            residual=0 if residual is None else residual.data_ptr(),
            weight=weight.data_ptr(),
            y=y.data_ptr(),
            s=0 if residual is None else s.data_ptr(),
            rows=rows,
            width=width,
            eps=eps,
        )
        runner.run(call, y)
        return y, s

    return rms_norm
