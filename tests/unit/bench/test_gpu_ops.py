"""`qwell bench gpu` on single ops: what it finds wrong, and what it times them against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from composed_ops import ComposedOps
from gpu_bench import CEILINGS, CPU, MIXED, TINY, StubTimer, calls
from torch import Tensor

from qwell.bench.gpu.calls import decode, prefill
from qwell.bench.gpu.ceilings import measure
from qwell.bench.gpu.fused_calls import FUSED_LINEARS, FusedCalls
from qwell.bench.gpu.kernels import kernel_times
from qwell.bench.gpu.parity import REFERENCE, epsilons, parity
from qwell.bench.gpu.timing import HostTimer
from qwell.kernels.ops import OP_NAMES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ops_that_are_right_pass(dtype: torch.dtype) -> None:
    rows = list(parity(CPU, lambda _: REFERENCE, {dtype: (MIXED,)}))
    assert {row.op for row in rows} == set(OP_NAMES)
    assert [row for row in rows if not row.ok] == []
    assert {row.dtype for row in rows} == {str(dtype).removeprefix("torch.")}


def rows_of(op: str, wrong: Callable[..., Any]) -> list[bool]:
    """Whether each call of an op passes, if `wrong` serves it; all others must."""
    rows = list(
        parity(CPU, lambda _: replace(REFERENCE, **{op: wrong}), {torch.bfloat16: (MIXED,)})
    )
    assert all(row.ok for row in rows if row.op != op)
    return [row.ok for row in rows if row.op == op]


@pytest.mark.parametrize("op", [name for name in OP_NAMES if name != "sample"])
def test_an_op_that_is_off_by_a_few_percent_fails(op: str) -> None:
    # Two percent are 2.6 epsilons of bfloat16: less than attention and rope are allowed.
    factor = 1.05 if op in ("attention", "rope") else 1.02
    right = getattr(REFERENCE, op)

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        if result is None:
            arguments[0].mul_(factor)
        if isinstance(result, tuple):
            return (result[0] * factor, *result[1:])
        return None if result is None else result * factor

    assert not any(rows_of(op, wrong))


def test_an_element_that_is_not_written_fails() -> None:
    def wrong(gate_up: Tensor) -> Tensor:
        out = torch.empty_like(gate_up[:, : gate_up.shape[1] // 2])
        out[:-1] = REFERENCE.silu_mul(gate_up)[:-1]
        return out

    assert rows_of("silu_mul", wrong) == [False]


def test_a_cache_slot_that_is_overwritten_fails() -> None:
    def wrong(*arguments: Any) -> Tensor:
        q = REFERENCE.rope(*arguments)
        arguments[6][-1, 0, -1] += 1
        return q

    assert rows_of("rope", wrong) == [False]


def test_ids_that_are_not_those_drawn_fail() -> None:
    assert rows_of("sample", lambda *a, **k: (REFERENCE.sample(*a, **k) + 1) % 512) == [False]


def test_an_op_that_raises_fails_alone() -> None:
    def wrong(_: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access")

    ops = replace(REFERENCE, silu_mul=wrong)
    rows = list(parity(CPU, lambda _: ops, {torch.bfloat16: (MIXED,)}))
    failures = [row for row in rows if row.failure]
    assert [row.op for row in failures] == ["silu_mul"]
    assert "an illegal memory access" in (failures[0].failure or "")
    assert len(rows) == len(calls(MIXED))


def test_epsilons_are_of_the_value_or_its_row() -> None:
    expected = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    actual = torch.tensor([[2.0 + 2**-7, 0.0], [0.0, 0.0]]).bfloat16()
    # 2.0 has bfloat16 neighbours at 2^-6; half of that rounds to even, to 2.0.
    assert epsilons(actual, expected) == 0.0
    actual[0, 0] += 2**-6
    assert epsilons(actual, expected) == pytest.approx(1.0)
    # sqrt(2) is the root mean square of the row [2, 0].
    actual[0] = torch.tensor([2.0, 2**-7])
    assert epsilons(actual, expected) == pytest.approx(2**-0.5)
    actual[1, 1] = torch.nan
    assert epsilons(actual, expected) == torch.inf
    assert epsilons(actual[:1], expected) == torch.inf


def test_bytes_and_flops_of_a_decode() -> None:
    # Three sequences of 40 tokens; bfloat16, so two bytes each.
    made = calls(decode(TINY, 3, 40))
    name = "tiny decode 3x40"
    linear = made[f"linear {name} gate_up"]
    assert linear.bytes_moved == 2 * (192 * 64 + 3 * 64 + 3 * 192)
    assert linear.flops == 2 * 3 * 192 * 64
    attention = made[f"attention {name}"]
    assert attention.bytes_moved == 2 * (2 * 3 * 4 * 16 + 3 * 40 * 2 * 2 * 16)
    assert attention.flops == 4 * 3 * 40 * 4 * 16
    assert made[f"rms_norm {name} + residual"].bytes_moved == 2 * (4 * 3 * 64 + 64)
    assert made[f"silu_mul {name}"].bytes_moved == 2 * 3 * 3 * 96
    # 4.5 bits a weight, and a float16 scale for each 32 of them.
    int4 = made[f"linear {name} gate_up int4"]
    assert int4.bytes_moved == 192 * 128 // 2 + 192 * 2 * 2 + 2 * (3 * 64 + 3 * 192)


def test_flops_of_a_prompt_count_causal_pairs_once() -> None:
    made = calls(prefill(TINY, 20))
    assert made["attention tiny prefill 20"].flops == 4 * (20 * 21 // 2) * 4 * 16
    # Logits are wanted for the last token alone.
    assert made["linear tiny prefill 20 head"].flops == 2 * 512 * 64


def test_a_kernel_is_timed_against_the_ceiling_that_binds_it() -> None:
    step = decode(TINY, 3, 40)
    rows = list(kernel_times(CPU, torch.bfloat16, REFERENCE, StubTimer(), CEILINGS, (step,)))
    assert all(row.parity.ok and row.failure is None for row in rows)
    assert {row.op for row in rows} == set(OP_NAMES)
    row = next(row for row in rows if row.case.endswith("gate_up"))
    assert row.microseconds == pytest.approx(1000)
    assert row.gigabytes_per_second == pytest.approx(row.bytes_moved / 1e6)
    assert row.bound == "memory"
    assert row.share == pytest.approx(row.bytes_moved / 1e9 / 1e-3)
    assert row.baseline == "cuBLAS"
    assert row.baseline_microseconds == pytest.approx(1000)


def test_fused_ops_are_timed_like_others() -> None:
    step, fused = decode(TINY, 3, 40), ComposedOps(REFERENCE).fused()
    rows = list(kernel_times(CPU, torch.float32, fused, StubTimer(), CEILINGS, (step,), FusedCalls))
    assert [row.op for row in rows] == list(FUSED_LINEARS)
    assert all(row.failure is None for row in rows)
    norm_linear = rows[0]
    assert norm_linear.parity.ok
    assert norm_linear.bytes_moved == 4 * (128 * 64 + 64 + 3 * (64 + 128))
    assert norm_linear.flops == 2 * 3 * 64 * 128


def test_torch_attention_that_serves_as_baseline_reads_the_same_amount() -> None:
    for step in (decode(TINY, 3, 40), prefill(TINY, 20)):
        call = calls(step)[f"attention {step.name}"]
        assert call.baseline is not None
        result = call.baseline[1]()
        assert isinstance(result, Tensor)
        assert result.numel() == call.arguments[0].numel()
    assert calls(MIXED)["attention mixed"].baseline is None


def test_ceilings_are_positive() -> None:
    found = measure(CPU, HostTimer(1), copy_bytes=1 << 20, matmul_side=32)
    assert found.bandwidth > 0
    assert found.flops > 0
