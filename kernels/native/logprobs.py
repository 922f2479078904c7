"""logprobs in C++ for CPUs: float64 inside, the most likely ids by selection."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import check_cpu, check_logits, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.native.runner import Runner
from qwell.kernels.ops import MAX_TOP_LOGPROBS, Logprobs


def bind(runner: Runner) -> Logprobs:
    """logprobs on a runner: fp32 logits [S, V], ids int32 [S], as kernels/ops.py says.

    Ids are trusted. Raises KernelError at a call whose tensors have other shapes or dtypes, or
    are not contiguous on the CPU, or whose `top` is not in 0 .. min(V, MAX_TOP_LOGPROBS).
    """

    def logprobs(logits: Tensor, ids: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
        rows, vocabulary = check_logits("logprobs", logits)
        check_cpu("logprobs", "logits", logits)
        most = min(vocabulary, MAX_TOP_LOGPROBS)
        if not 0 <= top <= most:
            raise KernelError(f"logprobs: top must be in 0..{most}, got {top}")
        if ids.dtype != torch.int32:
            raise KernelError(f"logprobs: ids must be torch.int32, got {ids.dtype}")
        check_cpu("logprobs", "ids", ids)
        check_tensor("logprobs", "ids", ids, ids, (rows,))
        given = runner.empty(logits, rows)
        top_ids = runner.empty(logits, rows, top, dtype=torch.int32)
        top_logprobs = runner.empty(logits, rows, top)
        call = _native.LogprobsCall(
            logits=logits.data_ptr(),
            ids=ids.data_ptr(),
            logprobs=given.data_ptr(),
            top_ids=top_ids.data_ptr(),
            top_logprobs=top_logprobs.data_ptr(),
            rows=rows,
            vocabulary=vocabulary,
            top=top,
        )
        runner.run(call, given)
        return given, top_ids, top_logprobs

    return logprobs
