"""`qwell bench gpu` on whole models, on a CPU: their logits, work and speeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_bench import (
    ABOUT,
    BATCH_INVARIANT,
    CEILINGS,
    CPU,
    StubTimer,
    run,
    run_at_once,
    ticking,
    tiny_model,
)
from small_config import SMALL
from torch import Tensor

from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.isolation import Section
from qwell.bench.gpu.model_parity import LogitsParity, logits_parity
from qwell.bench.gpu.model_speed import speeds
from qwell.bench.gpu.parity import REFERENCE
from qwell.bench.gpu.report import is_sound, table
from qwell.bench.gpu.serving import engine_speeds, throughput
from qwell.bench.work import Ceilings, Work
from qwell.kernels.reference import rms_norm as reference_rms_norm


def test_a_right_model_has_the_logits_of_the_reference() -> None:
    config = true_config("qwen2.5-0.5b") | SMALL
    rows = list(logits_parity(config, BATCH_INVARIANT, torch.bfloat16, CPU, run_at_once))
    assert all(row.ok for row in rows)
    compared = {row.step: row.equal for row in rows if row.equal is not None}
    assert compared == dict.fromkeys(
        (
            "a prompt whole, against its second chunk",
            "decode beside 11 others",
            "decode beside 59 others",
            "decode beside 251 others",
            "decode beside 295 others",
            "decode captured",
        ),
        True,
    )
    assert sum(row.equal is None for row in rows) == 3
    assert [row.equal_to_prefill is None for row in rows].count(False) == 1


def test_bits_that_depend_on_the_batch_are_found(tmp_path: Path) -> None:
    def linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        y = BATCH_INVARIANT.linear(x, weight, bias)
        return y * (1 + 2**-7) if len(x) > 100 else y

    def judged(_: Ceilings) -> Iterator[LogitsParity]:
        ops = replace(BATCH_INVARIANT, linear=linear)
        yield from logits_parity(
            true_config("qwen3-0.6b") | SMALL, ops, torch.bfloat16, CPU, run_at_once
        )

    results, outcomes = run(tmp_path, (Section("model parity", judged, 60),))
    equal = {row["step"]: row["equal"] for row in results["sections"][0]["rows"]}
    assert equal["decode beside 59 others"] is True
    assert equal["decode beside 251 others"] is False
    assert not is_sound(outcomes)
    assert "logits of decode beside 251 others: other bits" in table(ABOUT, outcomes)


def test_a_model_with_a_wrong_op_has_not() -> None:
    def wrong(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Any:
        y, s = reference_rms_norm.rms_norm(x, weight, eps, residual)
        return y * 1.03, s

    ops = replace(REFERENCE, rms_norm=wrong)
    config = true_config("qwen3-0.6b") | SMALL
    rows = list(logits_parity(config, ops, torch.bfloat16, CPU, None))
    assert rows
    assert not any(row.ok for row in rows)


def test_the_work_of_a_step() -> None:
    work = Work.of(tiny_model())
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    weights = 2 * layer + 512 * 64
    cache = 2 * 2 * 2 * 16 * 2  # k and v, layers, heads, their size, bytes
    only_bytes = Ceilings(bandwidth=1.0, flops=1e30)
    assert work.decode_floor(only_bytes, [40, 30]) == 2 * weights + 70 * cache
    only_flops = Ceilings(bandwidth=1e30, flops=1.0)
    met = 2 * 4 * 16 * 70 * 4  # layers, heads, their size, keys, two products of two flops
    assert work.decode_floor(only_flops, [40, 30]) == 2 * 2 * weights + met
    assert work.prefill_floor(only_flops, 20) == (
        2 * (20 * 2 * layer + 512 * 64) + 2 * 4 * 16 * 210 * 4
    )


def test_speeds_are_tokens_of_a_step_a_second() -> None:
    model = tiny_model()
    rows = list(speeds("tiny", model, StubTimer(), CEILINGS, lambda: run_at_once, [(3, 40)], [64]))
    assert [(row.phase, row.graphs) for row in rows] == [
        ("decode step", True),
        ("decode step", False),
        ("prefill step", False),
    ]
    assert [row.tokens_per_second for row in rows] == pytest.approx([3000, 3000, 64000])
    assert rows[0].share == pytest.approx(Work.of(model).decode_floor(CEILINGS, [40] * 3) / 1e-3)


def test_decodes_through_the_engine_count_decodes_alone() -> None:
    rows = list(engine_speeds("tiny", tiny_model(), CEILINGS, (1, 3), 40, 5, ticking()))
    # One second for five steps; a CPU has no graphs.
    assert [(row.batch, row.graphs) for row in rows] == [(1, False), (3, False)]
    assert [row.tokens_per_second for row in rows] == pytest.approx([5, 15])


def test_throughput_is_of_all_requests() -> None:
    row = throughput("tiny", tiny_model(), CEILINGS, 5, 4, 20, 1e6, ticking())
    assert (row.requests, row.finished) == (5, 5)
    assert 5 * 4 <= row.output_tokens <= 5 * 20
    assert row.tokens_per_second == pytest.approx(row.output_tokens / row.seconds)


def test_throughput_stops_when_the_time_is_up() -> None:
    row = throughput("tiny", tiny_model(), CEILINGS, 5, 4, 20, 3.0, ticking())
    assert row.finished < 5
    assert row.output_tokens > 0
