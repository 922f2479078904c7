"""Launch tables: which architecture, which row, and GPUs that are too old."""

from __future__ import annotations

from collections import namedtuple
from unittest import mock

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.launch import arch_of, check_gpu, pick

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
    if fits:
        check_gpu(torch.device("cuda"))
    else:
        with pytest.raises(
            KernelError, match=r"Tesla T4 has compute capability 7\.5; .* need 8\.0"
        ):
            check_gpu(torch.device("cuda"))
