"""adjust_logits in C++ for CPUs: a pass over the listed ids alone."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_cpu, check_logits, check_parameter
from qwell.kernels.native.runner import Runner
from qwell.kernels.ops import AdjustLogits


def bind(runner: Runner) -> AdjustLogits:
    """adjust_logits on a runner: fp32 logits [S, V] in place, as kernels/ops.py says.

    Ids are trusted. Raises KernelError at a call whose tensors have other shapes or dtypes, or
    are not contiguous on the CPU.
    """

    def adjust_logits(
        logits: Tensor,
        ids: Tensor,
        counts: Tensor,
        biases: Tensor,
        cu_ids: Tensor,
        newest: Tensor,
        repetition_penalty: Tensor,
        presence_penalty: Tensor,
        frequency_penalty: Tensor,
        only_listed: Tensor,
    ) -> None:
        rows, vocabulary = check_logits("adjust_logits", logits)
        check_cpu("adjust_logits", "logits", logits)
        listed = ids.numel()
        for name, parameter, dtype, size in (
            ("ids", ids, torch.int32, listed),
            ("counts", counts, torch.int32, listed),
            ("biases", biases, torch.float64, listed),
            ("cu_ids", cu_ids, torch.int32, rows + 1),
            ("newest", newest, torch.int32, rows),
            ("repetition_penalty", repetition_penalty, torch.float64, rows),
            ("presence_penalty", presence_penalty, torch.float64, rows),
            ("frequency_penalty", frequency_penalty, torch.float64, rows),
            ("only_listed", only_listed, torch.int32, rows),
        ):
            check_parameter("adjust_logits", name, parameter, dtype, size)
        call = _native.AdjustLogitsCall(
            logits=logits.data_ptr(),
            ids=ids.data_ptr(),
            counts=counts.data_ptr(),
            biases=biases.data_ptr(),
            cu_ids=cu_ids.data_ptr(),
            newest=newest.data_ptr(),
            repetition_penalty=repetition_penalty.data_ptr(),
            presence_penalty=presence_penalty.data_ptr(),
            frequency_penalty=frequency_penalty.data_ptr(),
            only_listed=only_listed.data_ptr(),
            rows=rows,
            vocabulary=vocabulary,
        )
        runner.run(call, logits)

    return adjust_logits
