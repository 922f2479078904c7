"""The sections of `qwell bench gpu`, on a CPU: results, failures, a checkout without an install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_bench import ABOUT, CEILINGS, CPU, MIXED, TINY, StubTimer, run
from small_config import SMALL

from qwell.bench.gpu.calls import decode
from qwell.bench.gpu.isolation import Section
from qwell.bench.gpu.kernels import KernelTime, kernel_times
from qwell.bench.gpu.parity import REFERENCE, Parity, parity
from qwell.bench.gpu.report import is_sound, table
from qwell.bench.work import Ceilings
from qwell.cli import main
from qwell.kernels.ops import OP_NAMES

ROOT = Path(__file__).parents[3]
NO_GPU = "qwell: error: qwell bench gpu needs a GPU, and torch finds none\n"


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
