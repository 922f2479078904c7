"""The Triton rms_norm as a GPU would run it: its machine code, its settings, its refusals."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.rms_norm import (
    MAX_WIDTH,
    launch_settings,
    rms_norm,
    rms_norm_kernel,
)


@pytest.fixture(scope="module")
def compile_rms_norm(compile_for_gpu):
    def compile_one(width, dtype, has_residual):
        settings = launch_settings(width, warp_size=32)
        return compile_for_gpu(
            rms_norm_kernel,
            arguments=[dtype] * 5 + [1e-6],
            constants={"WIDTH": width, "BLOCK": settings.block, "HAS_RESIDUAL": has_residual},
            options={"num_warps": settings.num_warps, "enable_fp_fusion": True},
        )

    return compile_one


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [1000, 4096, MAX_WIDTH])
def test_compiles_for_hopper_without_spills(width, dtype, has_residual, compile_rms_norm):
    binary = compile_rms_norm(width, dtype, has_residual)
    assert binary.cubin.startswith(b"\x7fELF")
    assert binary.matching("LDG")
    assert not binary.spills


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accesses_memory_128_bits_at_a_time(dtype, has_residual, compile_rms_norm):
    binary = compile_rms_norm(4096, dtype, has_residual)
    for access in ("LDG", "STG"):
        assert binary.matching(access) == binary.matching(rf"{access}\..*\.128") != []


@pytest.mark.parametrize(
    ("width", "warp_size", "expected"),
    [
        (1, 32, (1, 1)),
        (64, 32, (64, 1)),
        (1000, 32, (1024, 4)),
        (1024, 32, (1024, 4)),
        (1024, 64, (1024, 2)),
        (4096, 32, (4096, 8)),
        (MAX_WIDTH, 32, (MAX_WIDTH, 8)),
    ],
)
def test_launch_settings(width, warp_size, expected):
    assert launch_settings(width, warp_size) == expected


def test_refuses_rows_that_no_block_holds():
    x = torch.zeros(1, MAX_WIDTH + 1)
    with pytest.raises(KernelError, match=f"rms_norm: rows of x .* {MAX_WIDTH} elements, got"):
        rms_norm(x, x[0], 1e-6)


def test_refuses_a_weight_of_another_dtype():
    x = torch.zeros(1, 8, dtype=torch.bfloat16)
    with pytest.raises(KernelError, match=r"rms_norm: weight must be torch.bfloat16"):
        rms_norm(x, torch.zeros(8), 1e-6)
