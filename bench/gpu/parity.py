"""Whether the ops of a GPU compute what their references do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from qwell.bench.gpu.attempt import Failure, attempt
from qwell.bench.gpu.calls import Call, Calls, Step
from qwell.bench.gpu.fused_reference import FUSED_REFERENCE
from qwell.bench.kernels.models import MODELS, Model
from qwell.kernels.fused_ops import FusedOps
from qwell.kernels.ops import OP_NAMES, Ops
from qwell.kernels.reference.adjust_logits import adjust_logits
from qwell.kernels.reference.attention import attention
from qwell.kernels.reference.embedding import embedding
from qwell.kernels.reference.linear import linear
from qwell.kernels.reference.logprobs import logprobs
from qwell.kernels.reference.rms_norm import rms_norm
from qwell.kernels.reference.rope import rope
from qwell.kernels.reference.sample import sample
from qwell.kernels.reference.silu_mul import silu_mul
from qwell.kernels.registry import describe

REFERENCE = Ops(
    embedding=embedding,
    rms_norm=rms_norm,
    linear=linear,
    rope=rope,
    attention=attention,
    silu_mul=silu_mul,
    adjust_logits=adjust_logits,
    sample=sample,
    logprobs=logprobs,
)

# Heads of 64 and widths that are no power of two, beside the models of the timings.
_ODD = Model("Qwen2.5-0.5B", 896, 14, 2, 64, 4864, 151936)
# Decodes, then prompts: a first token, page borders on both sides, a cached prefix.
_QUERIES = (1, 1, 1, 1, 5, 16, 130)
_LENGTHS = (1, 16, 17, 1500, 5, 16, 700)


@dataclass(frozen=True)
class Parity:
    """How far a call's results are from the reference, which is computed in fp32.

    Attributes:
        family: who serves the op.
        error: most, in the units of Call.limit; infinite where one is NaN and the other not.
        differing: share of integers that differ, of the result where it is largest.
        failure: traceback of a call that raised.
    """

    op: str
    case: str
    dtype: str
    family: str
    error: float
    limit: float
    differing: float
    ok: bool
    failure: str | None = None


def parity_steps() -> dict[torch.dtype, tuple[Step, ...]]:
    """Steps of decodes and prompts together, by model dtype."""
    steps = {
        model.name: Step(f"{model.name} mixed", model, _QUERIES, _LENGTHS)
        for model in (_ODD, *MODELS)
    }
    few = (steps[_ODD.name],)
    return {torch.bfloat16: tuple(steps.values()), torch.float16: few, torch.float32: few}


def parity(
    device: torch.device,
    ops: Callable[[torch.dtype], Ops | FusedOps],
    steps: dict[torch.dtype, tuple[Step, ...]],
    names: Sequence[str] = OP_NAMES,
    calls: type[Calls] = Calls,
) -> Iterator[Parity]:
    """These ops of every step against the reference; `ops` chooses them for a dtype.

    `calls` makes their calls.
    """
    for dtype, of_dtype in steps.items():
        chosen = ops(dtype)
        for step in of_dtype:
            for call in calls(device, dtype).of(step, names):
                yield compare(call, chosen, dtype)


def compare(call: Call, ops: Ops | FusedOps, dtype: torch.dtype) -> Parity:
    """Run a call on both sides. If one raises, also for want of memory, that is the result."""
    name = str(dtype).removeprefix("torch.")
    known = (call.op, call.case, name, describe(ops)[call.op])
    found = attempt(lambda: _differences(call, ops))
    if isinstance(found, Failure):
        return Parity(*known, math.inf, call.limit, 1.0, False, found.text)
    error, differing = found
    ok = error <= call.limit and differing <= call.differing
    return Parity(*known, error, call.limit, differing, ok)


def _differences(call: Call, ops: Ops | FusedOps) -> tuple[float, float]:
    """The largest of the results, of floats and of integers."""
    with _poisoned():
        actual = _finished(_results(call, getattr(ops, call.op), _copied(call)))
    reference = FUSED_REFERENCE.get(call.op) or getattr(REFERENCE, call.op)
    expected = _results(call, reference, _widened(call.arguments))
    pairs = list(zip(actual, expected, strict=True))
    floats = [epsilons(a, e) for a, e in pairs if a.is_floating_point()]
    integers = [_differing(a, e) for a, e in pairs if not a.is_floating_point()]
    return max(floats, default=0.0), max(integers, default=0.0)


def epsilons(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, in machine epsilons of `actual` of the value or its row's size."""
    if actual.shape != expected.shape:
        return math.inf
    if actual.numel() == 0:
        return 0.0
    wide, expected = actual.float(), expected.float()
    size = expected.abs().maximum(expected.square().mean(dim=-1, keepdim=True).sqrt())
    unit = torch.finfo(actual.dtype).eps * size
    # 0 / 0 where both are zero; every other NaN is one that the results do not share.
    error = torch.where(wide == expected, 0.0, (wide - expected).abs() / unit)
    return error.nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def _differing(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return 1.0
    return (actual != expected).double().mean().item() if actual.numel() else 0.0


def _results(call: Call, op: Callable[..., Any], arguments: Sequence[Any]) -> list[Tensor]:
    """What the op returns, then what it has written to."""
    returned = op(*arguments)
    listed = [returned] if isinstance(returned, Tensor) else list(returned or ())
    return [*listed, *(arguments[place] for place in call.written)]


def _finished(results: list[Tensor]) -> list[Tensor]:
    """Wait for the device: what a kernel does wrong is told to whoever asks next."""
    if any(result.is_cuda for result in results):
        torch.cuda.synchronize()
    return results


def _widened(arguments: Sequence[Any]) -> list[Any]:
    """Arguments of the reference: half precisions as fp32, in tensors of their own."""
    return [
        argument.float() if isinstance(argument, Tensor) and argument.is_floating_point()
        # Parameters of sampling stay what they are.
        and argument.dtype != torch.float64 else argument
        for argument in arguments
    ]  # fmt: skip


def _copied(call: Call) -> list[Any]:
    return [
        argument.clone() if place in call.written else argument
        for place, argument in enumerate(call.arguments)
    ]


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer: what an op leaves unwritten shows."""
    empty, empty_like = torch.empty, torch.empty_like
    with (
        mock.patch.object(torch, "empty", lambda *a, **k: _poison(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: _poison(empty_like(*a, **k))),
    ):
        yield


def _poison(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor.fill_(math.nan)
    return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)
