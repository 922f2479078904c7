"""Launch tables: their files, which architecture, which row, and GPUs that are too old."""

from __future__ import annotations

import sys
from collections import namedtuple
from unittest import mock

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import arch_of, cdiv, check_gpu, next_power_of_2, pick

Row = namedtuple("Row", "limit warps")
TABLE = {"default": (Row(10, 1), Row(20, 2)), "sm_90": (Row(20, 4), Row(10, 8))}


@pytest.mark.parametrize(
    ("arch", "size", "warps"),
    [("sm_80", 5, 1), ("sm_80", 10, 1), ("sm_80", 11, 2), ("sm_90", 5, 4), ("gfx942", 11, 2)],
)
def test_the_first_row_that_serves_is_picked(arch, size, warps):
    assert pick(TABLE, arch, lambda row: size <= row.limit).warps == warps


def test_no_row_is_an_error():
    with pytest.raises(KernelError, match="no row for this on sm_90"):
        pick(TABLE, "sm_90", lambda row: row.limit > 20)


def test_a_table_is_read_from_its_file(tmp_path):
    file = tmp_path / "table.json"
    rows = '[{"limit": 10, "warps": 1, "why": "measured"}, {"limit": null, "warps": 2}]'
    file.write_text(f'{{"ROWS": {{"default": {rows}}}, "OTHER": {{}}}}')
    assert table_file(str(tmp_path / "table.py")) == file
    assert read_table(file, "ROWS", Row) == {"default": (Row(10, 1), Row(sys.maxsize, 2))}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"limit": 10}', r"table.json: ROWS sm_90: {'limit': 10}: .*missing.*'warps'"),
        ('{"limit": 10, "warps": 1, "wraps": 2}', "table.json: ROWS sm_90: .*unexpected.*'wraps'"),
    ],
)
def test_a_row_of_other_fields_is_named(row, message, tmp_path):
    file = tmp_path / "table.json"
    file.write_text(f'{{"ROWS": {{"sm_90": [{row}]}}}}')
    with pytest.raises(KernelError, match=message):
        read_table(file, "ROWS", Row)


@pytest.mark.parametrize(
    ("target", "arch"),
    [
        (GPUTarget("cuda", 90, 32), "sm_90"),
        (GPUTarget("cuda", 120, 32), "sm_120"),
        (GPUTarget("hip", "gfx942", 64), "gfx942"),
    ],
)
def test_arch_is_what_triton_compiles_for(target, arch, monkeypatch):
    monkeypatch.setattr(
        driver, "_active", mock.Mock(get_current_target=mock.Mock(return_value=target))
    )
    assert arch_of(torch.device("cuda")) == arch
    assert arch_of(torch.device("cpu")) == "default"


@pytest.mark.skipif(torch.version.hip is not None, reason="the limit is one of NVIDIA GPUs")
@pytest.mark.parametrize(("capability", "fits"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_gpus_before_ampere_are_refused(capability, fits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setenv("CC", "cc")
    if fits:
        check_gpu(torch.device("cuda"))
    else:
        with pytest.raises(
            KernelError, match=r"Tesla T4 has compute capability 7\.5; .* need 8\.0"
        ):
            check_gpu(torch.device("cuda"))


def test_a_machine_without_a_c_compiler_is_refused(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KernelError, match=r"needs a C compiler .* CC"):
        check_gpu(torch.device("cuda"))


def test_sizes_are_rounded_as_triton_rounds_them():
    for n in range(1, 1100):
        assert next_power_of_2(n) == triton.next_power_of_2(n)
        assert [cdiv(n, b) for b in (1, 16, 256)] == [triton.cdiv(n, b) for b in (1, 16, 256)]
