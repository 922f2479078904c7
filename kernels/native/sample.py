"""sample in C++ for CPUs: thresholds found without a sort of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_cpu, check_logits, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.native.runner import Runner
from qwell.kernels.ops import Sample


def bind(runner: Runner) -> Sample:
    """sample on a runner: next ids [S] (int32) from fp32 logits [S, V], as kernels/ops.py says.

    top_k, seen_ids [n] and cu_seen [S + 1] are int32, the other parameters [S] float64. Draws are
    in float64; every id returned is in [0, V), whatever the logits: NaN counts as the lowest
    number, infinities as the largest ones. Seen ids are trusted. Raises KernelError at a call
    whose tensors have other shapes or dtypes, or are not contiguous on the CPU.
    """

    def sample(
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        repetition_penalty: Tensor,
        seen_ids: Tensor,
        cu_seen: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        rows, vocabulary = check_logits("sample", logits)
        check_cpu("sample", "logits", logits)
        for name, parameter, dtype, size in (
            ("temperature", temperature, torch.float64, rows),
            ("top_k", top_k, torch.int32, rows),
            ("top_p", top_p, torch.float64, rows),
            ("min_p", min_p, torch.float64, rows),
            ("repetition_penalty", repetition_penalty, torch.float64, rows),
            ("seen_ids", seen_ids, torch.int32, seen_ids.numel()),
            ("cu_seen", cu_seen, torch.int32, rows + 1),
            ("uniform", uniform, torch.float64, rows),
        ):
            if parameter.dtype != dtype:
                raise KernelError(f"sample: {name} must be {dtype}, got {parameter.dtype}")
            check_cpu("sample", name, parameter)
            check_tensor("sample", name, parameter, parameter, (size,))
        next_ids = runner.empty(logits, rows, dtype=torch.int32)
        call = _native.SampleCall(
            logits=logits.data_ptr(),
            temperature=temperature.data_ptr(),
            top_k=top_k.data_ptr(),
            top_p=top_p.data_ptr(),
            min_p=min_p.data_ptr(),
            repetition_penalty=repetition_penalty.data_ptr(),
            seen_ids=seen_ids.data_ptr(),
            cu_seen=cu_seen.data_ptr(),
            uniform=uniform.data_ptr(),
            next_ids=next_ids.data_ptr(),
            rows=rows,
            vocabulary=vocabulary,
        )
        runner.run(call, next_ids)
        return next_ids

    return sample
