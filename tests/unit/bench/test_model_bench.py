"""`qwell bench model`: what it runs, what the figures are of, how it takes turns with a peer."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_config import SMALL

from qwell.bench.checkpoints import make_checkpoint, true_config
from qwell.bench.model.cases import Case, all_cases
from qwell.bench.model.messages import Lap
from qwell.bench.model.peer import BATCHED, Peer, PeerError
from qwell.bench.model.process import WorkerProcess
from qwell.bench.model.results import CaseResult, Run
from qwell.bench.model.steps import demand, run_case
from qwell.bench.work import Ceilings, Work, weight_bytes
from qwell.cli import main
from qwell.kernels.native.packed import PackedWeight, packed_bytes
from qwell.runtime.batch import Layout
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import CacheDType, EngineOptions
from qwell.runtime.errors import EngineStartError

LLAMA_CPP_HELP = "-p, --n-prompt <n>\n-pg <pp,tg>\n-d, --n-depth <n>\n"
IK_HELP = "-p, --n-prompt <n>\n-pg <pp,tg>\n-gp <pp,tg>\n"
DEEP_PREFILL = Case(phase="prefill", depth=32, batch=1, tokens=16)
DEEP_DECODE = Case(phase="decode", depth=32, batch=1, tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "new"
    make_checkpoint(true_config("qwen3-0.6b") | SMALL, path)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    options = EngineOptions(
        model=str(folder), device="cpu", kv_cache_tokens=1024, max_batch_tokens=24
    )
    return Engine.start(options)


class FakeBench:
    """A program that answers as llama-bench does, and notes its arguments."""

    def __init__(
        self, folder: Path, help_text: str, output: str, status: int = 0, name: str = "llama-bench"
    ) -> None:
        self.gguf = folder / "model.gguf"
        self.gguf.touch()
        self.program = folder / name
        self._log = folder / f"{name}.calls"
        self.program.write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            "if '--help' in sys.argv:\n"
            f"    print({help_text!r})\n"
            "    sys.exit(0)\n"
            f"with open({str(self._log)!r}, 'a') as log:\n"
            "    log.write(json.dumps(sys.argv[1:]) + '\\n')\n"
            f"print({output!r})\n"
            f"sys.exit({status})\n"
        )
        self.program.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        if not self._log.exists():
            return []
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def one_result(rate: float) -> str:
    return json.dumps([{"n_prompt": 0, "avg_ts": rate, "stddev_ts": 0.0}], indent=2)


class Recorder:
    """Stands in for an engine: its model, and the steps that were run."""

    def __init__(self, engine: Engine) -> None:
        self.model = engine.model
        self.sampler = engine.sampler
        self.layouts: list[Layout] = []
        self._forward = engine.forward

    def forward(self, layout: Layout) -> torch.Tensor:
        self.layouts.append(layout)
        return self._forward(layout)


def test_prompts_at_every_depth_decodes_at_every_depth_and_batch() -> None:
    cases = all_cases(512, 64, [0, 2048], [1, 8])
    assert [(c.phase, c.depth, c.batch, c.tokens) for c in cases] == [
        ("prefill", 0, 1, 512),
        ("prefill", 2048, 1, 512),
        ("decode", 0, 1, 64),
        ("decode", 0, 8, 64),
        ("decode", 2048, 1, 64),
        ("decode", 2048, 8, 64),
    ]
    assert [c.phase for c in all_cases(0, 1, [0], [1])] == ["decode"]
    assert all_cases(0, 0, [0], [1]) == []


def test_a_prompt_runs_in_chunks_of_a_server_and_ends_with_a_draw(engine: Engine) -> None:
    recorder = Recorder(engine)
    run_case(recorder, Case(phase="prefill", depth=32, batch=1, tokens=40), 24)
    warm_up, *steps = recorder.layouts
    assert len(warm_up.positions) == 16
    assert [step.positions for step in steps] == [
        list(range(32, 56)),
        list(range(56, 72)),
    ]
    assert [len(step.logit_rows) for step in steps] == [0, 1]


def test_decodes_advance_every_sequence_by_a_token_a_step(engine: Engine) -> None:
    recorder = Recorder(engine)
    run_case(recorder, Case(phase="decode", depth=32, batch=3, tokens=4), 24)
    _, *steps = recorder.layouts
    assert [step.positions for step in steps] == [[32 + i] * 3 for i in range(4)]
    assert {len(step.logit_rows) for step in steps} == {3}
    slots = [slot for step in steps for slot in step.slot_mapping]
    assert len(set(slots)) == 12  # nobody writes where another does


@given(
    depth=st.integers(0, 40),
    tokens=st.integers(1, 60),
    chunk=st.integers(1, 64),
)
def test_work_of_a_prompt_does_not_depend_on_its_chunks_but_for_what_is_read_again(
    depth: int, tokens: int, chunk: int
) -> None:
    work = Work(
        layer_bytes=1000,
        head_bytes=100,
        cache_bytes_per_token=8,
        layer_weights=500,
        head_weights=50,
        attention_width=16,
    )
    case = Case(phase="prefill", depth=depth, batch=1, tokens=tokens)
    needed = demand(work, case, chunk)
    met = sum(range(depth + 1, depth + tokens + 1))
    assert needed.flops == 2 * (tokens * 500 + 50) + 4 * met * 16
    ends = [min(depth + tokens, depth + start + chunk) for start in range(0, tokens, chunk)]
    assert needed.bytes_moved == 1000 * len(ends) + 100 + 8 * sum(ends)


def test_work_of_decodes() -> None:
    work = Work(1000, 100, 8, 500, 50, 16)
    needed = demand(work, Case(phase="decode", depth=10, batch=2, tokens=3), 512)
    assert needed.bytes_moved == 3 * 1100 + 8 * 2 * (11 + 12 + 13)
    assert needed.flops == 3 * 2 * 2 * 550 + 4 * 16 * 2 * (11 + 12 + 13)


def test_a_packed_weight_counts_as_its_data() -> None:
    size = packed_bytes("int8", 16, 64)
    assert size == 16 * 64 + 16 * 2 * 2
    data = torch.zeros(size + 64, dtype=torch.uint8)
    data = data[-data.data_ptr() % 64 :][:size]
    assert weight_bytes(PackedWeight("int8", data, 16, 64)) == size


def test_figures_are_medians_and_ratios_are_of_pairs() -> None:
    def run(seconds: float, bandwidth: float, peer: float) -> Run:
        lap = Lap(seconds=seconds, tokens=10, bytes_moved=1000, flops=4000, resident_bytes=7)
        return Run(ceilings=Ceilings(bandwidth, 8000.0), lap=lap, peer=peer)

    # The machine is half as fast in the second run: neither the share nor the ratio is.
    runs = [run(1.0, 2000.0, 5.0), run(2.0, 1000.0, 2.5), run(1.25, 2000.0, 5.0)]
    figures = CaseResult(case=DEEP_DECODE, runs=runs).figures()
    assert msgspec.structs.astuple(figures.tokens_per_second) == (8.0, 5.0, 10.0)
    assert figures.bytes_per_token == 100.0
    assert figures.bandwidth_share == 0.5
    assert figures.flops_share == 0.4
    assert figures.peer_tokens_per_second is not None
    assert figures.ratio is not None
    assert figures.peer_tokens_per_second.median == 5.0
    assert msgspec.structs.astuple(figures.ratio) == (2.0, 1.6, 2.0)


def test_without_a_peer_there_is_no_ratio() -> None:
    lap = Lap(seconds=1.0, tokens=1, bytes_moved=1, flops=1, resident_bytes=None)
    run = Run(ceilings=Ceilings(1.0, 1.0), lap=lap)
    figures = CaseResult(case=DEEP_DECODE, runs=[run]).figures()
    assert figures.ratio is None
    assert figures.peer_tokens_per_second is None


@pytest.mark.parametrize(
    ("help_text", "case", "expected"),
    [
        (LLAMA_CPP_HELP, Case(phase="prefill", depth=0, batch=1, tokens=16), "-p 16 -n 0"),
        (LLAMA_CPP_HELP, Case(phase="decode", depth=0, batch=1, tokens=4), "-p 0 -n 4"),
        (LLAMA_CPP_HELP, DEEP_PREFILL, "-p 16 -n 0 -d 32"),
        (LLAMA_CPP_HELP, DEEP_DECODE, "-p 0 -n 4 -d 32"),
        (IK_HELP, Case(phase="decode", depth=0, batch=1, tokens=4), "-p 0 -n 4"),
        (IK_HELP, DEEP_DECODE, "-p 0 -n 0 -gp 32,4"),
    ],
)
def test_a_peer_runs_the_case_once(
    help_text: str, case: Case, expected: str, tmp_path: Path
) -> None:
    fake = FakeBench(tmp_path, help_text, one_result(12.5))
    peer = Peer(fake.program, fake.gguf, 2, ["-rtr", "1"])
    assert peer.refusal(case) is None
    assert peer.tokens_per_second(case) == 12.5
    common = shlex.split(f"-r 1 -o json -m {fake.gguf} -t 2 -rtr 1")
    assert fake.calls == [[*common, *expected.split()]]


@pytest.mark.parametrize(
    ("help_text", "case", "refusal"),
    [
        (LLAMA_CPP_HELP, Case(phase="decode", depth=0, batch=2, tokens=4), "peer has no batch"),
        (IK_HELP, DEEP_PREFILL, "peer has no depth"),
        ("-p, --n-prompt <n>", DEEP_DECODE, "peer has no depth"),
    ],
)
def test_what_a_peer_cannot_run(help_text: str, case: Case, refusal: str, tmp_path: Path) -> None:
    fake = FakeBench(tmp_path, help_text, "")
    assert Peer(fake.program, fake.gguf, 2).refusal(case) == refusal


def test_several_sequences_are_decoded_by_the_program_beside_it(tmp_path: Path) -> None:
    single = FakeBench(tmp_path, LLAMA_CPP_HELP, one_result(1.0))
    batched = FakeBench(tmp_path, "", json.dumps({"speed_tg": 22.5, "t": 1}), name=BATCHED)
    peer = Peer(single.program, single.gguf, 2, ["-fa", "0"])
    case = Case(phase="decode", depth=0, batch=8, tokens=4)
    assert peer.refusal(case) is None
    assert peer.tokens_per_second(case) == 22.5
    assert peer.tokens_per_second(msgspec.structs.replace(case, depth=32)) == 22.5
    common = shlex.split(f"-m {single.gguf} -t 2 -fa 0")
    assert batched.calls == [
        [*common, *f"-c {cells} -npp {depth} -ntg 4 -npl 8 --output-format jsonl".split()]
        for cells, depth in ((256, 1), (288, 32))
    ]
    assert single.calls == []


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        ("no such tensor", 1, "status 1: no such tensor"),
        ("", 3, "status 3: it said nothing"),
        ("| model | t/s |", 0, "not print the JSON of one"),
        ("[]", 0, "not print the JSON of one"),
        ('[{"avg_ts": "fast"}]', 0, "not print the JSON of one"),
    ],
)
def test_a_peer_that_fails_is_named(output: str, status: int, message: str, tmp_path: Path) -> None:
    fake = FakeBench(tmp_path, LLAMA_CPP_HELP, output, status)
    peer = Peer(fake.program, fake.gguf, 1)
    with pytest.raises(PeerError, match=message) as caught:
        peer.tokens_per_second(DEEP_DECODE)
    assert str(fake.program) in str(caught.value)


def test_a_peer_must_be_there_and_be_llama_bench(tmp_path: Path) -> None:
    fake = FakeBench(tmp_path, "usage: something else", "")
    with pytest.raises(PeerError, match="does not seem to be llama-bench"):
        Peer(fake.program, fake.gguf, 1)
    with pytest.raises(PeerError, match="cannot be run: No such file"):
        Peer(tmp_path / "missing", fake.gguf, 1)
    with pytest.raises(PeerError, match="not a file"):
        Peer(fake.program, tmp_path / "missing.gguf", 1)


@pytest.mark.parametrize(("kv_cache_dtype", "vector_bytes"), [("float16", 32), ("int8", 20)])
def test_a_worker_runs_cases_until_it_is_ended(
    folder: Path, kv_cache_dtype: CacheDType, vector_bytes: int
) -> None:
    options = EngineOptions(
        model=str(folder), device="cpu", kv_cache_tokens=256, kv_cache_dtype=kv_cache_dtype
    )
    with WorkerProcess(options) as worker:
        assert worker.first_token_seconds > 0
        # 2 layers of (4 + 2 + 2) * 16 x 64 + 64 x 64 + 3 * 96 x 64, and the head.
        weights = 2 * (128 * 64 + 64 * 64 + 3 * 96 * 64) + 512 * 64
        assert worker.started.weight_bytes in (2 * weights, 4 * weights)
        # Keys and values of 2 layers, each of 2 heads of 16 elements, and in int8 of a scale.
        assert worker.started.cache_bytes == 256 * 2 * 2 * 2 * vector_bytes
        case = Case(phase="decode", depth=8, batch=2, tokens=3)
        for _ in range(2):
            lap = worker.run(case)
            assert lap.tokens == 6
            assert lap.seconds > 0
            cached = 2 * sum(range(9, 12)) * 2 * 2 * 2 * vector_bytes
            assert lap.bytes_moved == 3 * worker.started.weight_bytes + cached


def test_a_worker_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"config\.json"):
        WorkerProcess(EngineOptions(model=str(tmp_path), device="cpu"))


def test_the_command_measures_in_turns_and_writes_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeBench(tmp_path, IK_HELP, one_result(1e-3))
    written = tmp_path / "out.json"
    command = f"bench model --model {folder} --prefill 16 --decode 4 --depth 0,32 --batch 1,2"
    command += f" --threads 1 --runs 2 --compare {fake.program},{fake.gguf} --json {written}"
    assert main([*command.split(), "--compare-args=-rtr 1"]) == 0
    printed = capsys.readouterr().out
    assert "prefill 16 at 32" in printed
    assert "peer has no depth" in printed
    assert "decode 4 x 2 at 32" in printed
    report: dict[str, Any] = json.loads(written.read_text())
    assert report["options"]["threads"] == 1
    assert report["peer"][-2:] == ["-rtr", "1"]
    (weights,) = report["weights"]
    assert weights["weights"] == "auto"
    assert len(weights["cases"]) == 6
    for case in weights["cases"]:
        assert len(case["result"]["runs"]) == 2
        compared = case["result"]["peer_refusal"] is None
        assert compared == (case["figures"]["ratio"] is not None)
        # The peer makes a token in 1000 seconds.
        assert not compared or case["figures"]["ratio"]["least"] > 1.0
    assert len(fake.calls) == 2 * 3  # prefill at 0, decodes at 0 and 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--weights int3", "--weights: must be some of auto"),
        ("--weights int8,int8", "each once"),
        ("--depth -1", "--depth"),
        ("--depth 0,x", "must be a whole number"),
        ("--batch 0", "--batch: must be a whole number of at least 1"),
        ("--compare here", "must be LLAMA_BENCH,GGUF"),
        ("--compare-args=-v", "goes with --compare"),
        ("--prefill 0 --decode 0", "nothing to measure"),
    ],
)
def test_usage_errors(
    arguments: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", "model", "--model", str(folder), *arguments.split()])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
