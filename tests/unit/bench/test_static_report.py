"""The static report: what it counts, what it finds fault with, what the command prints."""

from __future__ import annotations

import json
import re

import pytest
import torch
import triton
import triton.language as tl

from qwell.bench.kernels import cases, static
from qwell.bench.kernels.cases import Case
from qwell.bench.kernels.chips import CHIPS, MULTIPROCESSORS
from qwell.bench.kernels.static import static_report, table
from qwell.cli import main
from qwell.kernels.errors import KernelError


@triton.jit
def product(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    o = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    b_c = tl.dot(tl.load(a_ptr + o), tl.load(b_ptr + o))
    tl.store(c_ptr + o, b_c.to(c_ptr.dtype.element_ty))


@triton.jit
def centre(x_ptr, y_ptr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_x = tl.load(x_ptr + o).to(tl.float32)
    tl.store(y_ptr + o, (b_x - tl.sum(b_x) / BLOCK).to(y_ptr.dtype.element_ty))


@triton.jit
def reverse(x_ptr, y_ptr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(y_ptr + o, tl.load(x_ptr + BLOCK - 1 - o))


@triton.jit
def broken(x_ptr):
    tl.store(x_ptr, tl.dot(tl.load(x_ptr), 1.0))


def meta(*shape):
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


def run_product():
    product[(7,)](meta(32, 32), meta(32, 32), meta(32, 32), SIZE=32, enable_fp_fusion=True)


def run_centre(size):
    centre[(1,)](meta(size), meta(size), BLOCK=size, num_warps=1, enable_fp_fusion=True)


def run_reverse():
    reverse[(2, 3)](meta(4096), meta(4096), BLOCK=4096, num_warps=4, enable_fp_fusion=True)


@pytest.fixture
def report_on(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def report(case, arch="sm_90"):
        monkeypatch.setitem(static.CASES, "op", lambda _: iter([case]))
        return static_report([arch], ["op"])

    monkeypatch.setattr(static, "CASES", dict(cases.CASES))
    return report


@pytest.mark.parametrize("arch", ["sm_80", "sm_100", "gfx942"])
def test_matrix_instructions_are_counted_and_required(arch, report_on):
    (row,) = report_on(Case("dot", run_product, 1, tensor_kernels=("product",)), arch)
    assert row.facts.tensor > 0
    assert row.faults == ()
    (row,) = report_on(Case("reverse", run_reverse, 1, tensor_kernels=("reverse",)), arch)
    assert row.facts.tensor == 0
    assert row.faults == ("no matrix instructions",)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_narrow_loads_are_found_where_wide_ones_are_required(arch, report_on):
    (row,) = report_on(Case("reverse", run_reverse, 1, wide_kernels=("reverse",)), arch)
    assert row.programs == 6
    assert row.faults == ("only 0% of loaded bytes by 128-bit loads",)
    (row,) = report_on(Case("reverse", run_reverse, 1), arch)
    assert row.faults == ()


@pytest.mark.parametrize(("arch", "size"), [("sm_90", 16384), ("gfx942", 32768)])
def test_spills_are_found(arch, size, report_on):
    (row,) = report_on(Case("centre", lambda: run_centre(size), 1), arch)
    assert row.facts.local > 0
    assert row.faults == (f"{row.facts.local} accesses to local memory",)


def test_a_required_kernel_that_is_not_launched_is_an_error(report_on):
    with pytest.raises(KernelError, match="sm_90 op reverse launches no kernel renamed"):
        report_on(Case("reverse", run_reverse, 1, wide_kernels=("renamed",)))


def test_a_kernel_that_does_not_compile_is_named(report_on):
    case = Case("bad", lambda: broken[(1,)](meta(1), enable_fp_fusion=True), 1)
    with pytest.raises(KernelError, match="sm_90 op bad does not compile"):
        report_on(case)


def test_facts_are_read_once(report_on, monkeypatch):
    case = Case("reverse", run_reverse, 1)
    first = report_on(case)
    monkeypatch.setattr("qwell.bench.kernels.facts_cache.read_facts", None)
    assert report_on(case) == first


def test_floor_is_the_slower_of_memory_and_arithmetic():
    h100 = next(chip for chip in CHIPS if chip.name == "H100")
    assert h100.floor_us(3_350_000, 0, "bf16") == pytest.approx(1.0)
    assert h100.floor_us(3_350_000, 4 * 989_000_000, "bf16") == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("arch", "warps", "registers", "shared", "programs"),
    [
        ("sm_90", 4, 32, 0, 16),  # 64 warps
        ("sm_90", 1, 32, 0, 32),  # 32 programs
        ("sm_90", 4, 128, 0, 4),  # 65536 registers
        ("sm_90", 4, 129, 0, 3),  # which are handed out in eights
        ("sm_90", 4, 32, 100 * 1024, 2),  # 228 KiB, of which the system takes one a program
        ("sm_120", 4, 32, 100 * 1024, 0),
        ("sm_80", 8, 255, 0, 1),
        ("gfx942", 4, 64, 0, 8),  # 8 waves a SIMD
        ("gfx942", 4, 129, 0, 3),  # 512 registers a lane of a SIMD
        ("gfx942", 1, 64, 64 * 1024, 1),
    ],
)
def test_resident_programs(arch, warps, registers, shared, programs):
    assert MULTIPROCESSORS[arch].resident_programs(warps, registers, shared) == programs


def test_table_ends_with_the_faults(report_on):
    rows = report_on(Case("reverse", run_reverse, 3_350_000, wide_kernels=("reverse",)))
    lines = table(rows).splitlines()
    assert lines[0].split()[:4] == ["arch", "op", "case", "kernel"]
    assert lines[1].split()[:5] == ["sm_90", "op", "reverse", "reverse", "6"]
    assert "only 0% of loaded bytes" in lines[-2]
    assert lines[-1] == "1 kernels, 1 faults"


def test_command_prints_and_writes_the_report(capsys, tmp_path):
    file = tmp_path / "report.json"
    command = ["bench", "kernels", "--static", "--op", "logprobs", "--json", str(file)]
    assert main(command) == 0
    assert "logprobs_kernel" in capsys.readouterr().out
    (row,) = json.loads(file.read_text())
    assert row["arch"] == "sm_90"
    assert row["facts"]["local"] == 0
    assert row["floors_us"]["H100"] == pytest.approx(46.4, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--static"),
        (["--static", "--arch", "sm_70"], "--arch: must be one of sm_80"),
        (["--static", "--op", "softmax"], "--op: must be one of .*rms_norm"),
    ],
)
def test_command_refuses(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "kernels", *options])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
