"""linear in C++ for CPUs: linear_kernel.cpp, one unit an instruction set."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_cpu, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.native.packed import PackedWeight
from qwell.kernels.native.runner import FORMATS, Runner
from qwell.kernels.ops import Linear
from qwell.kernels.weights import Weight


def bind(runner: Runner) -> Linear:
    """linear on a runner, of float32 activations and packed weights.

    In int8 and int4 activations are quantised (`quantize_activations` of kernels/quantize.py), in
    bf16 they are rounded to bfloat16 where the processor has products of that. Raises KernelError
    at a call whose tensors are not contiguous float32 CPU tensors, or whose weight is not packed.
    """

    def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if not isinstance(weight, PackedWeight):
            raise KernelError(f"linear: weight must be packed, got {type(weight).__name__}")
        if x.dim() != 2 or x.shape[1] != weight.columns:
            shape = tuple(x.shape)
            raise KernelError(f"linear: x must have shape [T, {weight.columns}], got {shape}")
        if x.dtype != torch.float32:
            raise KernelError(f"linear: x must be torch.float32, got {x.dtype}")
        check_cpu("linear", "x", x)
        check_tensor("linear", "x", x, x, tuple(x.shape))
        if bias is not None:
            check_tensor("linear", "bias", bias, x, (weight.rows,))
        y = runner.empty(x, len(x), weight.rows)
        call = _native.LinearCall(
            format=FORMATS[weight.format],
            x=x.data_ptr(),
            weight=weight.data.data_ptr(),
            bias=0 if bias is None else bias.data_ptr(),
            y=y.data_ptr(),
            rows=len(x),
            columns=weight.columns,
            outputs=weight.rows,
        )
        runner.run(call, y)
        return y

    return linear
