"""The results as a short text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwell.bench.gpu.isolation import Outcome
from qwell.bench.gpu.kernels import KernelTime
from qwell.bench.gpu.model_parity import LogitsParity
from qwell.bench.gpu.model_speed import Speed
from qwell.bench.gpu.parity import Parity
from qwell.bench.gpu.serving import Throughput
from qwell.bench.text_table import NONE, aligned
from qwell.bench.work import Ceilings


def is_sound(outcomes: Sequence[Outcome]) -> bool:
    """Every section ran to its end, and all that it checked was right."""
    ended = not any(outcome.failure or outcome.out_of_time for outcome in outcomes)
    return ended and not list(_faults(outcomes))


def table(about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Ceilings, kernels, models; then all that went wrong."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    kernels = [_kernel_cells(row) for row in rows if isinstance(row, KernelTime)]
    models = [_speed_cells(row) for row in rows if isinstance(row, Speed)]
    served = [_throughput_cells(row) for row in rows if isinstance(row, Throughput)]
    judged = [row.parity if isinstance(row, KernelTime) else row for row in rows]
    checked = [row for row in judged if isinstance(row, Parity | LogitsParity)]
    right = sum(row.ok for row in checked)
    lines = [f"{about['gpu']}, torch {about['torch']}, triton {about['triton']}"]
    lines += [
        f"ceilings: copy {row.bandwidth / 1e12:.2f} TB/s, "
        f"bf16 matmul {row.flops / 1e12:.0f} TFLOP/s"
        for row in rows
        if isinstance(row, Ceilings)
    ]
    lines += aligned(("op", "case", "us", "GB/s", "TFLOP/s", "of ceiling", "torch us"), kernels)
    lines += aligned(("model", "phase", "graphs", "ms", "tok/s", "of ceiling"), models)
    lines += aligned(("model", "serving", "seconds", "out tok/s", "of ceiling"), served)
    lines += ["", f"parity: {right} of {len(checked)} right", *_faults(outcomes)]
    lines += [
        f"no fault: the logits of {row.step} have other bits than by prefill"
        for row in rows
        if isinstance(row, LogitsParity) and row.equal_to_prefill is False
    ]
    for outcome in outcomes:
        if outcome.failure:
            lines.append(f"{outcome.name} failed: {outcome.failure.strip().splitlines()[-1]}")
        elif outcome.out_of_time:
            lines.append(f"{outcome.name} ran out of time after {len(outcome.rows)} results")
    return "\n".join(lines)


def _faults(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A line for each result that is not right, or missing for an exception."""
    for row in (row for outcome in outcomes for row in outcome.rows):
        if isinstance(row, KernelTime):
            if row.failure:
                yield f"{row.op} {row.case}: {row.failure.strip().splitlines()[-1]}"
            if not row.parity.ok:
                yield _parity_fault(row.parity)
        elif isinstance(row, Parity) and not row.ok:
            yield _parity_fault(row)
        elif isinstance(row, LogitsParity):
            if not row.ok:
                yield (
                    f"logits of {row.step}: error {row.error:.2g}, plain torch has "
                    f"{row.reference_error:.2g}"
                )
            if row.equal is False:
                yield f"logits of {row.step}: other bits than in another step"


def _parity_fault(row: Parity) -> str:
    if row.failure:
        return f"{row.op} {row.case} {row.dtype}: {row.failure.strip().splitlines()[-1]}"
    return (
        f"{row.op} {row.case} {row.dtype}: {row.error:.3g} epsilons off, right is up to "
        f"{row.limit:g}; {row.differing:.2%} of the integers differ"
    )


def _kernel_cells(row: KernelTime) -> tuple[str, ...]:
    return (
        row.op,
        row.case,
        _number(row.microseconds, ".1f"),
        _number(row.gigabytes_per_second, ".0f"),
        _number(row.teraflops, ".1f"),
        f"{_number(row.share, '.0%')} {row.bound}",
        _number(row.baseline_microseconds, ".1f"),
    )


def _speed_cells(row: Speed) -> tuple[str, ...]:
    return (
        row.model,
        f"{row.phase} {row.batch}x{row.context}",
        "graphs" if row.graphs else "eager",
        f"{row.milliseconds:.3f}",
        f"{row.tokens_per_second:.0f}",
        f"{row.share:.0%}",
    )


def _throughput_cells(row: Throughput) -> tuple[str, ...]:
    return (
        row.model,
        f"{row.finished} of {row.requests} requests",
        f"{row.seconds:.1f}",
        f"{row.tokens_per_second:.0f}",
        f"{row.share:.0%}",
    )


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
