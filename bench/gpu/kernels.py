"""What each op reaches of the ceilings, beside torch's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qwell.bench.gpu.attempt import Failure, attempt
from qwell.bench.gpu.calls import Call, Calls, Step, decode, prefill
from qwell.bench.gpu.parity import Parity, compare
from qwell.bench.gpu.timing import Timer
from qwell.bench.kernels.models import MODELS
from qwell.bench.work import Ceilings
from qwell.kernels.fused_ops import FusedOps
from qwell.kernels.ops import Ops


@dataclass(frozen=True)
class KernelTime:
    """A timed call.

    Attributes:
        parity: the same call's, checked before.
        bound: the ceiling that limits it, memory or matmul.
        share: of that ceiling, 1.0 being all of it.
        baseline_microseconds: of torch's own, named `baseline`.
        failure: traceback of a measurement that raised.
    """

    op: str
    case: str
    parity: Parity
    bytes_moved: int
    flops: int
    bound: str
    microseconds: float | None = None
    gigabytes_per_second: float | None = None
    teraflops: float | None = None
    share: float | None = None
    baseline: str | None = None
    baseline_microseconds: float | None = None
    failure: str | None = None


def kernel_steps() -> tuple[Step, ...]:
    """Batches that decode and a prompt, of a small and of a large model."""
    small, large = MODELS
    return (
        decode(small, 64, 1024),
        decode(large, 1, 8192),
        prefill(small, 4096),
        decode(large, 64, 1024),
        decode(small, 1, 1024),
        prefill(large, 8192),
        decode(small, 256, 1024),
    )


def kernel_times(
    device: torch.device,
    dtype: torch.dtype,
    ops: Ops | FusedOps,
    timer: Timer,
    ceilings: Ceilings,
    steps: Sequence[Step],
    calls: type[Calls] = Calls,
) -> Iterator[KernelTime]:
    """Check and time every op of every step, of which `calls` makes the calls."""
    for step in steps:
        for call in calls(device, dtype).of(step):
            yield time_call(call, dtype, ops, timer, ceilings)


def time_call(
    call: Call, dtype: torch.dtype, ops: Ops | FusedOps, timer: Timer, ceilings: Ceilings
) -> KernelTime:
    """Check and time one call."""
    checked = compare(call, ops, dtype)
    by_memory = call.bytes_moved / ceilings.bandwidth >= call.flops / ceilings.flops
    known = (call.op, call.case, checked, call.bytes_moved, call.flops)
    bound = "memory" if by_memory else "matmul"
    run = getattr(ops, call.op)
    seconds = attempt(lambda: timer.seconds(lambda: run(*call.arguments)))
    if isinstance(seconds, Failure):
        return KernelTime(*known, bound, failure=seconds.text)
    name, baseline = call.baseline or (None, None)
    theirs = None if baseline is None else attempt(lambda: timer.seconds(baseline))
    return KernelTime(
        *known,
        bound,
        microseconds=seconds * 1e6,
        gigabytes_per_second=call.bytes_moved / seconds / 1e9,
        teraflops=call.flops / seconds / 1e12,
        share=ceilings.floor(call.bytes_moved, call.flops) / seconds,
        baseline=name,
        baseline_microseconds=theirs * 1e6 if isinstance(theirs, float) else None,
        failure=theirs.text if isinstance(theirs, Failure) else None,
    )
