"""`qwell bench kernels --tune`, on a CPU: ops and a clock that follow the launch table by hand."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.bench.gpu.calls import Step, prefill
from qwell.bench.gpu.parity import REFERENCE
from qwell.bench.kernels.compile import compile_only
from qwell.bench.kernels.models import Model
from qwell.bench.kernels.static import MATRIX
from qwell.bench.tune.report import table
from qwell.bench.tune.space import Load, Space
from qwell.bench.tune.tables import SPACES
from qwell.bench.tune.trial import Rig
from qwell.bench.tune.tune import Tuned, tune
from qwell.bench.tune.write import text_of, write_row
from qwell.cli import main
from qwell.kernels.ops import OP_NAMES
from qwell.kernels.triton.configs.table_file import read_table
from qwell.kernels.triton.launch import pick

CPU = torch.device("cpu")
NO_GPU = "needs a GPU, and torch finds none\n"
TINY = Model("tiny", hidden=64, heads=4, kv_heads=2, head_dim=16, mlp=96, vocabulary=512)
EVERY = tuple(space for spaces in SPACES.values() for space in spaces)
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")
FILE = """{
 "ROWS": {
  "default": [
   {"max_width": 100, "block": 1, "num_warps": 1},
   {"max_width": null, "block": 1, "num_warps": 1, "why": "enough"}
  ],
  "gfx942": [
   {"max_width": null, "block": 9, "num_warps": 9}
  ]
 },
 "OTHER": {
  "default": [
   {"warps": 4}
  ]
 }
}
"""


class Settings(NamedTuple):
    max_width: int
    block: int
    num_warps: int


class Clock:
    """Measures calls by what they say that they took."""

    now = 0.0

    def seconds(self, run: Callable[[], object]) -> float:
        start = self.now
        run()
        return self.now - start


@triton.jit
def centre(x_ptr, y_ptr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_x = tl.load(x_ptr + o).to(tl.float32)
    tl.store(y_ptr + o, (b_x - tl.sum(b_x) / BLOCK).to(y_ptr.dtype.element_ty))


class Bench:
    """silu_mul with a launch table, whose rows cost and do what a test says."""

    def __init__(self, folder: Path, *, same_bits: bool = True) -> None:
        config = ModuleType("config")
        config.__file__ = str(folder / "config.py")
        self.file = folder / "config.json"
        self.file.write_text(FILE)
        self.rows = config.ROWS = self.read()
        self.space = Space(
            "silu_mul",
            config,
            {"block": (1, 2, 3), "num_warps": (1, 2)},
            lambda _, row: row.block != 3 or row.num_warps == 1,
            same_bits,
            self._loads,
        )
        self.clock = Clock()
        self.cost: Callable[[Settings, int], float] = lambda _row, _width: 1.0
        self.act: Callable[[Settings, Tensor], Tensor] = lambda _row, y: y
        self.launched: list[tuple[int, Settings]] = []

    def read(self) -> dict[str, tuple[Settings, ...]]:
        return read_table(self.file, "ROWS", Settings)

    def tune(self) -> list[Tuned]:
        ops = dataclasses.replace(REFERENCE, silu_mul=self._silu_mul)
        rig = Rig("sm_90", CPU, lambda _: ops, self.clock)
        return list(tune(rig, (self.space,), "a card"))

    def _loads(self, _: Sequence[Settings]) -> Any:
        for width in (96, 100, 200):
            step = prefill(dataclasses.replace(TINY, mlp=width, name=f"width {width}"), 5)
            yield Load({"max_width": width}, torch.bfloat16, step)

    def _silu_mul(self, gate_up: Tensor) -> Tensor:
        width = gate_up.shape[1] // 2
        row = pick(self.rows, "sm_90", lambda row: width <= row.max_width)
        self.launched.append((width, row))
        self.clock.now += self.cost(row, width) * 1e-6
        return self.act(row, REFERENCE.silu_mul(gate_up))


def other_bits(y: Tensor) -> Tensor:
    """The smallest element another one: far less than a rounding error of its row."""
    y = y.clone()
    y.view(-1)[y.abs().argmin()] *= 1.5
    return y


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refusals(tuned: Tuned) -> dict[tuple[int, int], str]:
    return {
        (trial.row.block, trial.row.num_warps): trial.refusal
        for trial in tuned.trials
        if trial.refusal is not None
    }


def test_the_static_report_compiles_for_every_architecture_that_has_rows() -> None:
    assert {arch for space in EVERY for arch in space.table} == {"default", *MATRIX} - {"sm_80"}


def test_the_fastest_row_is_written_and_serves(bench: Bench) -> None:
    bench.cost = lambda row, _: {(2, 1): 0.5, (2, 2): 0.8}.get((row.block, row.num_warps), 1.0)
    first, second = bench.tune()
    assert first.chosen == Settings(100, 2, 1)
    assert first.ratio == pytest.approx(0.5)
    assert second.chosen == Settings(sys.maxsize, 2, 1)
    assert bench.rows["sm_90"] == bench.read()["sm_90"] == (first.chosen, second.chosen)
    tables = json.loads(bench.file.read_text())
    written = tables["ROWS"].pop("sm_90")
    assert written[1] == {
        "max_width": None,
        "block": 2,
        "num_warps": 1,
        "why": "a card: 0.50 of the time of the row before",
    }
    assert tables == json.loads(FILE)


def test_all_rows_that_keep_the_rules_are_tried_on_the_shapes_of_their_row(bench: Bench) -> None:
    for tuned in bench.tune():
        tried = {(trial.row.block, trial.row.num_warps) for trial in tuned.trials}
        assert tried == {(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)}
    limits = {width: {row.max_width for w, row in bench.launched if w == width} for width in
              (96, 100, 200)}  # fmt: skip
    assert limits == {96: {100}, 100: {100}, 200: {sys.maxsize}}


def test_nothing_is_written_for_less_than_the_margin(bench: Bench) -> None:
    bench.cost = lambda row, _: 1.0 if row.block == 1 else 0.98
    assert [tuned.chosen for tuned in bench.tune()] == [None, None]
    assert bench.file.read_text() == FILE
    assert "sm_90" not in bench.rows


def test_luck_is_not_enough(bench: Bench) -> None:
    lucky = iter([0.1] * 4)  # two calls of the first row's trial, each checked and timed
    bench.cost = lambda row, _: next(lucky, 1.0) if row.block == 2 else 1.0
    assert bench.tune()[0].chosen is None
    assert bench.file.read_text() == FILE


def test_all_shapes_count_alike_and_none_may_lose_much(bench: Bench) -> None:
    # In microseconds, a row of block 3 saves most in all.
    present = {96: 1.0, 100: 100.0, 200: 1.0}
    costs = {(2, 1): {96: 1.05, 100: 80.0}, (3, 1): {96: 1.2, 100: 10.0}}
    bench.cost = lambda row, width: costs.get(row[1:], present).get(width, 1.0)
    first, _ = bench.tune()
    assert first.chosen == Settings(100, 2, 1)
    assert first.ratio == pytest.approx((1.05 * 0.8) ** 0.5)
    assert "1.20 of the present row's time on width 96" in refusals(first)[3, 1]


def test_rows_that_fail_or_are_wrong_are_refused(bench: Bench) -> None:
    def act(row: Settings, y: Tensor) -> Tensor:
        if row.block == 3:
            raise RuntimeError("out of resource: shared memory")
        if row.num_warps == 2:
            return y * 1.05 if row.block == 2 else other_bits(y)
        return y

    bench.cost = lambda row, _: 1.0 if row == bench.rows["default"][0] else 0.1
    bench.act = act
    first, _ = bench.tune()
    refused = refusals(first)
    assert refused.keys() == {(3, 1), (2, 2), (1, 2)}
    assert refused[3, 1] == "RuntimeError: out of resource: shared memory"
    assert "epsilons off" in refused[2, 2]
    assert refused[1, 2] == "other bits on width 96 prefill 5"
    assert first.chosen == Settings(100, 2, 1)


def test_other_bits_may_serve_where_no_rows_promise_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path, same_bits=False)
    bench.cost = lambda row, _: 0.5 if row.block == 3 else 1.0
    bench.act = lambda row, y: other_bits(y) if row.block == 3 else y
    assert bench.tune()[0].chosen == Settings(100, 3, 1)


def test_rows_whose_kernels_spill_are_refused(bench: Bench) -> None:
    def act(row: Settings, y: Tensor) -> Tensor:
        x = torch.empty(16384, dtype=torch.bfloat16, device="meta")
        centre[(1,)](x, x, BLOCK=16384, num_warps=32 // row.block, enable_fp_fusion=True)
        return y

    bench.space = dataclasses.replace(bench.space, choices={"block": (1, 32)})
    bench.cost = lambda row, _: 1.0 / row.block
    bench.act = act
    with compile_only("sm_90"):
        first, second = bench.tune()
    assert refusals(first) == refusals(second) == {(32, 1): "spills registers"}
    assert bench.file.read_text() == FILE


def test_a_present_row_that_fails_is_left_alone(bench: Bench) -> None:
    def act(row: Settings, y: Tensor) -> Tensor:
        if row.max_width == 100:
            raise RuntimeError("no kernel image")
        return y

    bench.act = act
    bench.cost = lambda row, _: 1.0 / row.block
    first, second = bench.tune()
    assert (first.chosen, len(first.trials)) == (None, 1)
    assert second.chosen == Settings(sys.maxsize, 3, 1)
    text = table(first, "sm_90")
    assert "RuntimeError: no kernel image" in text
    assert text.splitlines()[-1] == "left alone: the present row fails"


def test_the_report_names_the_table_and_ranks_what_was_tried(bench: Bench) -> None:
    bench.cost = lambda row, _: {2: 5.0, 3: 20.0}.get(row.block, 10.0)
    lines = table(bench.tune()[0], "sm_90").splitlines()
    assert lines[0] == "silu_mul: config ROWS sm_90, row 1 of 2"
    assert lines[1].split() == ["max_width", "block", "num_warps", "us", "ratio"]
    assert lines[2].split() == ["100", "2", "1", "5.00", "0.500"]
    assert lines[4].split() == ["100", "1", "1", "10.00", "1.000", "present"]
    assert lines[6].split()[:3] == ["100", "3", "1"]
    assert "2.00 of the present row's time" in lines[6]
    assert lines[7].startswith(str(bench.file))
    assert "block=2, num_warps=1" in lines[7]


def test_a_write_that_fails_leaves_the_file(bench: Bench, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_row(bench.file, "ROWS", "sm_90", 0, Settings(100, 2, 2), "why not")
    assert bench.file.read_text() == FILE
    assert list(bench.file.parent.iterdir()) == [bench.file]


def test_a_written_file_keeps_its_mode_and_other_rows(bench: Bench) -> None:
    bench.file.chmod(0o664)
    write_row(bench.file, "ROWS", "gfx942", 0, Settings(sys.maxsize, 2, 2), "why not")
    assert bench.file.stat().st_mode & 0o777 == 0o664
    changed = '{"max_width": null, "block": 2, "num_warps": 2, "why": "why not"}'
    row = '{"max_width": null, "block": 9, "num_warps": 9}'
    assert bench.file.read_text() == FILE.replace(row, changed)


def named(space: Space) -> str:
    return f"{space.file.stem} {space.name}"


@pytest.mark.parametrize("space", EVERY, ids=named)
def test_tables_of_the_kernels_keep_their_own_rules(space: Space) -> None:
    for arch in {*ARCHS, *space.table} - {"default"}:
        for place, row in enumerate(space.rows(arch)):
            assert space.keeps(arch, row)
            assert set(space.choices) <= set(row._fields)
            candidates = space.candidates(arch, row)
            assert candidates[0] == row
            assert len(set(candidates)) == len(candidates) <= 128
            limits = [field for field in row._fields if field.startswith("max_")]
            assert {tuple(getattr(c, f) for f in limits) for c in candidates} == {
                tuple(getattr(row, f) for f in limits)
            }
            assert list(space.loads_of(arch, place))


@pytest.mark.parametrize("space", EVERY, ids=named)
def test_files_of_the_kernels_are_as_they_would_be_written(space: Space) -> None:
    # So that the difference that tuning makes is one of rows.
    text = space.file.read_text()
    assert text_of(json.loads(text)) == text


@pytest.mark.parametrize("space", EVERY, ids=named)
def test_every_load_has_calls(space: Space) -> None:
    for load in space.loads(space.rows("sm_90")):
        made = space.calls(CPU, load.dtype).of(Step("small", TINY, (1, 1), (1, 5)), space.ops)
        cases = [call.case for call in made]
        assert all(any(case.endswith(end) for case in cases) for end in load.cases)


def test_every_op_has_all_of_its_tables() -> None:
    # adjust_logits looks at a few ids: its launch is no matter of speed.
    assert set(SPACES) == {*OP_NAMES, "gemv", "merge_linear_add"} - {"adjust_logits"}
    for file in {space.file for space in EVERY}:
        names = {space.name for space in EVERY if space.file == file}
        assert names == set(json.loads(file.read_text()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would tune for minutes")
def test_without_a_gpu_there_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", "--tune", "silu_mul"]) == 1
    assert capsys.readouterr().err == f"qwell: error: qwell bench kernels --tune {NO_GPU}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tune", "softmax"], "--tune: there are launch tables for .*linear"),
        (["--tune", "linear", "--arch", "sm_80"], "--arch: goes with --static, not with --tune"),
        (["--tune", "linear", "--op", "linear"], "--op: goes with --static"),
        (["--tune", "linear", "--static"], "not allowed with argument"),
    ],
)
def test_command_refuses(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "kernels", *options])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
