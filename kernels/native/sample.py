"""sample in C++ for CPUs: thresholds found without a sort of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_cpu, check_logits, check_parameter
from qwell.kernels.native.runner import Runner
from qwell.kernels.ops import Sample


def bind(runner: Runner) -> Sample:
    """sample on a runner: next ids [S] (int32) from fp32 logits [S, V], as kernels/ops.py says.

    top_k is int32, the other parameters are float64. Draws are in float64; every id returned is
    in [0, V), whatever the logits: NaN counts as the lowest number, infinities as the largest
    ones. Raises KernelError at a call whose tensors have other shapes or dtypes, or are not
    contiguous on the CPU.
    """

    def sample(
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        typical_p: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        rows, vocabulary = check_logits("sample", logits)
        check_cpu("sample", "logits", logits)
        for name, parameter, dtype in (
            ("temperature", temperature, torch.float64),
            ("top_k", top_k, torch.int32),
            ("top_p", top_p, torch.float64),
            ("min_p", min_p, torch.float64),
            ("typical_p", typical_p, torch.float64),
            ("uniform", uniform, torch.float64),
        ):
            check_parameter("sample", name, parameter, dtype, rows)
        next_ids = runner.empty(logits, rows, dtype=torch.int32)
        call = _native.SampleCall(
            logits=logits.data_ptr(),
            temperature=temperature.data_ptr(),
            top_k=top_k.data_ptr(),
            top_p=top_p.data_ptr(),
            min_p=min_p.data_ptr(),
            typical_p=typical_p.data_ptr(),
            uniform=uniform.data_ptr(),
            next_ids=next_ids.data_ptr(),
            rows=rows,
            vocabulary=vocabulary,
        )
        runner.run(call, next_ids)
        return next_ids

    return sample
