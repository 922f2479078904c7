"""The Triton rms_norm as a GPU would run it: its machine code, its settings, its refusals."""

from __future__ import annotations

import pytest
import torch
import triton

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.rms_norm import MAX_WIDTH, settings
from qwell.kernels.triton.rms_norm import rms_norm, rms_norm_kernel


@pytest.fixture(scope="module")
def compile_rms_norm(compile_for_gpu):
    def compile_one(width, dtype, has_residual):
        return compile_for_gpu(
            rms_norm_kernel,
            arguments=[dtype] * 5 + [1e-6],
            constants={
                "WIDTH": width,
                "BLOCK": triton.next_power_of_2(width),
                "HAS_RESIDUAL": has_residual,
            },
            options={"num_warps": settings("sm_90", width).num_warps, "enable_fp_fusion": True},
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
    ("width", "arch", "num_warps"),
    [
        (1, "sm_90", 1),
        (256, "sm_90", 1),
        (257, "sm_90", 2),
        (1024, "sm_80", 4),
        (1024, "gfx942", 2),
        (4096, "gfx950", 8),
        (MAX_WIDTH, "sm_100", 8),
    ],
)
def test_launch_settings(width, arch, num_warps):
    assert settings(arch, width).num_warps == num_warps


def test_refuses_rows_that_no_block_holds():
    x = torch.zeros(1, MAX_WIDTH + 1)
    with pytest.raises(KernelError, match=f"rms_norm: rows of x .* {MAX_WIDTH} elements, got"):
        rms_norm(x, x[0], 1e-6)


def test_refuses_a_weight_of_another_dtype():
    x = torch.zeros(1, 8, dtype=torch.bfloat16)
    with pytest.raises(KernelError, match=r"rms_norm: weight must be torch.bfloat16"):
        rms_norm(x, torch.zeros(8), 1e-6)
