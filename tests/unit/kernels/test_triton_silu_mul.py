"""The Triton silu_mul and embedding: their settings and refusals.

Their machine code is held to limits with the kernel reports.
"""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs import embedding as embedding_config
from qwell.kernels.triton.configs import silu_mul as silu_mul_config
from qwell.kernels.triton.embedding import embedding
from qwell.kernels.triton.silu_mul import silu_mul, silu_mul_kernel


@pytest.mark.parametrize("width", [3072, 4864])
def test_accesses_memory_128_bits_at_a_time(width, compile_for_gpu):
    chosen = silu_mul_config.settings("sm_90", width)
    binary = compile_for_gpu(
        silu_mul_kernel,
        arguments=[torch.bfloat16] * 2,
        constants={"WIDTH": width, "BLOCK": chosen.block},
        options={"num_warps": chosen.num_warps, "enable_fp_fusion": True},
    )
    assert not binary.spills
    for access in ("LDG", "STG"):
        assert binary.matching(access) == binary.matching(rf"{access}\..*\.128") != []


@pytest.mark.parametrize("config", [silu_mul_config, embedding_config])
@pytest.mark.parametrize("arch", ["default", "sm_90", "gfx942"])
def test_threads_have_eight_elements(config, arch):
    threads = 64 if arch.startswith("gfx") else 32
    for width in (1, 256, 257, 1024, 100_000):
        chosen = config.settings(arch, width)
        assert width <= chosen.max_width
        assert chosen.block == 8 * threads * chosen.num_warps


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.zeros(8), r"gate_up must have shape \[T, 2 I\], got \(8,\)"),
        (torch.zeros(2, 7), r"gate_up must have shape \[T, 2 I\], got \(2, 7\)"),
        (torch.zeros(2, 8).double(), "gate_up must be one of .*float64"),
        (torch.zeros(8, 2).T, "gate_up must be contiguous"),
    ],
)
def test_silu_mul_refuses_what_it_would_misread(gate_up, message):
    with pytest.raises(KernelError, match=f"silu_mul: {message}"):
        silu_mul(gate_up)


IDS = torch.zeros(3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("ids", "table", "message"),
    [
        (IDS, torch.zeros(8), r"table must have shape \[V, d\]"),
        (IDS, torch.zeros(8, 2).int(), r"table must have .* got \(8, 2\) of torch.int32"),
        (IDS, torch.zeros(2, 8).T, "table must be contiguous"),
        (IDS.long(), torch.zeros(8, 2), r"ids must be contiguous int32 \[T\], got torch.int64"),
        (IDS.to("meta"), torch.zeros(8, 2), "ids must be on cpu, got meta"),
    ],
)
def test_embedding_refuses_what_it_would_misread(ids, table, message):
    with pytest.raises(KernelError, match=f"embedding: {message}"):
        embedding(ids, table)
