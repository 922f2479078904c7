"""The harness of `qwell bench gpu`, on a CPU: tiny models, the ops of a CPU, sections by hand."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composed_ops import ComposedOps
from torch import Tensor

from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.calls import Call, Calls, Step, decode, prefill
from qwell.bench.gpu.ceilings import measure
from qwell.bench.gpu.fused_calls import FUSED_LINEARS, FusedCalls
from qwell.bench.gpu.isolation import Section
from qwell.bench.gpu.kernels import KernelTime, kernel_times
from qwell.bench.gpu.model import random_model
from qwell.bench.gpu.model_parity import LogitsParity, logits_parity
from qwell.bench.gpu.model_speed import speeds
from qwell.bench.gpu.parity import REFERENCE, Parity, epsilons, parity
from qwell.bench.gpu.report import is_sound, table
from qwell.bench.gpu.run import run_sections
from qwell.bench.gpu.serving import engine_speeds, throughput
from qwell.bench.gpu.timing import HostTimer
from qwell.bench.kernels.models import Model
from qwell.bench.work import Ceilings, Work
from qwell.cli import main
from qwell.kernels.ops import OP_NAMES, Ops
from qwell.kernels.reference import rms_norm as reference_rms_norm
from qwell.runtime.loader import LoadedModel

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
TINY = Model("tiny", hidden=64, heads=4, kv_heads=2, head_dim=16, mlp=96, vocabulary=512)
MIXED = Step("mixed", TINY, (1, 1, 5, 40), (1, 33, 5, 70))
CEILINGS = Ceilings(bandwidth=1e9, flops=1e10)
NO_GPU = "qwell: error: qwell bench gpu needs a GPU, and torch finds none\n"
ABOUT = {"gpu": "none", "torch": "2", "triton": "3"}
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 512,
}


def row_by_row(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """linear whose rows do not depend on their number, as torch's do on CPUs."""
    rows = [REFERENCE.linear(row, weight, bias) for row in x.split(1)]
    return torch.cat(rows) if rows else REFERENCE.linear(x, weight, bias)


BATCH_INVARIANT = replace(REFERENCE, linear=row_by_row)


class StubTimer:
    """Runs the call, and says that it took a millisecond."""

    def seconds(self, run: Callable[[], object]) -> float:
        run()
        return 1e-3


def calls(step: Step, dtype: torch.dtype = torch.bfloat16) -> dict[str, Call]:
    return {f"{call.op} {call.case}": call for call in Calls(CPU, dtype).of(step)}


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


def tiny_model(ops: Ops = REFERENCE) -> LoadedModel:
    return random_model(true_config("qwen3-0.6b") | SMALL, ops, 2048, 512, torch.bfloat16, CPU)


def run_at_once(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    step()
    return step


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


def ticking() -> Callable[[], float]:
    """A clock that a second passes on whenever it is read."""
    now = iter(range(1_000_000))
    return lambda: float(next(now))


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


def kernels(ceilings: Ceilings) -> Iterator[KernelTime]:
    step = decode(TINY, 3, 40)
    yield from kernel_times(CPU, torch.bfloat16, REFERENCE, StubTimer(), ceilings, (step,))


def wrong_silu_mul(_: Ceilings) -> Iterator[Parity]:
    ops = replace(REFERENCE, silu_mul=lambda x: torch.empty_like(x[:, : x.shape[1] // 2]))
    yield from parity(CPU, lambda _: ops, {torch.bfloat16: (MIXED,)}, ("rms_norm", "silu_mul"))


def a_ceiling(_: Ceilings) -> Iterator[Ceilings]:
    yield CEILINGS


def failing(_: Ceilings) -> Iterator[Ceilings]:
    yield CEILINGS
    raise ValueError("out of luck")


def dying(_: Ceilings) -> Iterator[Ceilings]:
    yield CEILINGS
    os._exit(7)


def hanging(_: Ceilings) -> Iterator[Ceilings]:
    yield CEILINGS
    time.sleep(1000)


def run(tmp_path: Path, *groups: tuple[Section, ...]) -> tuple[Any, list[Any]]:
    # Forked, because spawned ones could not import this file.
    processes = multiprocessing.get_context("fork")
    outcomes = run_sections(groups, 100.0, processes, tmp_path, ABOUT)
    return json.loads((tmp_path / "gpu.json").read_text()), outcomes


def test_the_results_are_json_and_a_table(tmp_path: Path) -> None:
    results, outcomes = run(
        tmp_path, (Section("ceilings", a_ceiling, 30),), (Section("kernels", kernels, 60),)
    )
    assert results["machine"] == ABOUT
    ceilings, timed = results["sections"]
    assert ceilings["rows"] == [{"bandwidth": 1e9, "flops": 1e10}]
    assert {row["op"] for row in timed["rows"]} == set(OP_NAMES)
    # The share is of the ceilings that the first section found.
    linear = next(row for row in timed["rows"] if row["case"].endswith("gate_up"))
    assert linear["share"] == pytest.approx(linear["bytes_moved"] / 1e9 / 1e-3)
    assert linear["parity"]["ok"] is True
    assert is_sound(outcomes)
    text = table(ABOUT, outcomes)
    assert "gate_up" in text
    checks = len(timed["rows"])
    assert f"parity: {checks} of {checks} right" in text


def test_what_is_wrong_is_named_and_counts(tmp_path: Path) -> None:
    results, outcomes = run(tmp_path, (Section("parity", wrong_silu_mul, 60),))
    bad = [row for row in results["sections"][0]["rows"] if not row["ok"]]
    assert [row["op"] for row in bad] == ["silu_mul"]
    assert bad[0]["error"] is None  # NaN has no size
    assert not is_sound(outcomes)
    assert "silu_mul mixed bfloat16: inf epsilons off" in table(ABOUT, outcomes)


def test_sections_that_end_badly_stop_no_other(tmp_path: Path) -> None:
    results, outcomes = run(
        tmp_path,
        (Section("failing", failing, 30), Section("dying", dying, 30)),
        (Section("hanging", hanging, 2),),
        (Section("last", a_ceiling, 30),),
    )
    ends = {section["name"]: section for section in results["sections"]}
    assert all(len(section["rows"]) == 1 for section in ends.values())
    assert "ValueError: out of luck" in ends["failing"]["failure"]
    assert "Traceback" in ends["failing"]["failure"]
    assert "status 7" in ends["dying"]["failure"]
    assert ends["hanging"]["out_of_time"] is True
    assert ends["last"]["failure"] is None
    assert not is_sound(outcomes)
    text = table(ABOUT, outcomes)
    assert "failing failed: ValueError: out of luck" in text
    assert "hanging ran out of time after 1 results" in text


def test_results_are_kept_before_their_section_ends(tmp_path: Path) -> None:
    def reading(_: Ceilings) -> Iterator[Ceilings]:
        file = tmp_path / "gpu.json"
        while not (file.exists() and json.loads(file.read_text())["sections"][0]["rows"]):
            time.sleep(0.05)
        yield CEILINGS

    _, outcomes = run(tmp_path, (Section("hanging", hanging, 8), Section("reading", reading, 7)))
    assert [outcome.out_of_time for outcome in outcomes] == [True, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for minutes")
def test_without_a_gpu_there_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "gpu", "--out", str(tmp_path / "results")]) == 1
    assert capsys.readouterr().err == NO_GPU
    assert not (tmp_path / "results").exists()


# What torch, triton and numpy need, and nothing else that qwell depends on.
BARE = ("torch", "torchgen", "functorch", "triton", "numpy", "numpy.libs", "typing_extensions.py",
        "sympy", "mpmath", "networkx", "filelock", "fsspec", "setuptools", "_distutils_hack",
        "nvidia", "jinja2", "markupsafe", "packaging")  # fmt: skip

PROGRAM = """
import sys
sys.path.insert(0, "bench")
import gpu_from_checkout  # as a program, it is what the processes of sections import first
from functools import partial
from multiprocessing import get_context
import torch
from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.calls import prefill
from qwell.bench.work import Ceilings
from qwell.bench.gpu.isolation import Outcome, Section, run_isolated
from qwell.bench.gpu.kernels import kernel_times
from qwell.bench.gpu.model import random_model
from qwell.bench.gpu.parity import REFERENCE
from qwell.bench.gpu.serving import throughput
from qwell.bench.gpu.timing import HostTimer
from qwell.bench.kernels.models import Model

if __name__ == "__main__":
    cpu, ceilings = torch.device("cpu"), Ceilings(1e9, 1e9)
    config = true_config("qwen3-0.6b") | {small}
    model = random_model(config, REFERENCE, 2048, 512, torch.bfloat16, cpu)
    print(throughput("tiny", model, ceilings, 3, 4, 8, 100.0).finished)
    steps = (prefill(Model("tiny", 64, 4, 2, 16, 96, 512), 20),)
    rows = partial(kernel_times, cpu, torch.bfloat16, REFERENCE, HostTimer(1), steps=steps)
    section = Section("kernels", rows, 60.0)
    outcome = run_isolated(section, Outcome("kernels"), ceilings, get_context("spawn"))
    print(outcome.failure, sorted({{row.op for row in outcome.rows}}))
    print([name for name in ("tokenizers", "qwell.kernels._native") if name in sys.modules])
"""


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in the checkout with torch, triton and numpy alone."""
    packages = Path(torch.__file__).parents[1]
    site = tmp_path / "site"
    site.mkdir()
    for name in BARE:
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)

    def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run_python


def test_it_runs_from_a_checkout_where_nothing_is_installed(
    bare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert "No module named 'msgspec'" in bare("-c", "import msgspec").stderr
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(small=SMALL))
    run = bare(str(program))
    ops = sorted(OP_NAMES)
    assert run.stdout.splitlines() == ["3", f"None {ops}", "[]"], run.stderr
    if not torch.cuda.is_available():
        measured = bare("bench/gpu_from_checkout.py", "--out", str(tmp_path / "results"))
        assert (measured.returncode, measured.stdout) == (1, "")
        assert measured.stderr == NO_GPU
