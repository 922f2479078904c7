"""The Triton rope as a GPU would run it: its machine code and its refusals."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.rope import settings
from qwell.kernels.triton.rope import rope, rope_kernel


@pytest.fixture(scope="module")
def compile_rope(compile_for_gpu):
    def compile_one(head_dim, dtype, has_norm, capability=90):
        chosen = settings(f"sm_{capability}")
        index = torch.int32
        return compile_for_gpu(
            rope_kernel,
            arguments=[dtype, index, torch.float32, dtype, dtype, index, *[dtype] * 3, 1e-6],
            constants={
                "NUM_HEADS": 14,
                "NUM_KV_HEADS": 2,
                "HEAD_DIM": head_dim,
                "PAGE": 16,
                "BLOCK_H": chosen.block // (head_dim // 2),
                "BLOCK_D": head_dim // 2,
                "HAS_NORM": has_norm,
            },
            options={"num_warps": chosen.num_warps, "enable_fp_fusion": True},
            compute_capability=capability,
        )

    return compile_one


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("capability", [80, 90])
def test_accesses_memory_128_bits_at_a_time(capability, head_dim, has_norm, compile_rope):
    binary = compile_rope(head_dim, torch.bfloat16, has_norm, capability)
    assert not binary.spills
    # The position and the slot are two loads of one number.
    assert len(binary.matching("LDG")) == len(binary.matching(r"LDG\..*\.128")) + 2
    assert binary.matching("STG") == binary.matching(r"STG\..*\.128") != []


def test_compiles_for_fp32_without_spills(compile_rope):
    assert not compile_rope(128, torch.float32, True).spills


@pytest.fixture
def arguments():
    """Valid arguments of rope: 3 tokens, 4 + 2 heads of 16."""
    cache = torch.zeros(2, 2, 16, 16)
    return {
        "qkv": torch.zeros(3, 8 * 16),
        "positions": torch.zeros(3, dtype=torch.int32),
        "cos_sin": torch.zeros(9, 16),
        "q_norm": torch.ones(16),
        "k_norm": torch.ones(16),
        "eps": 1e-6,
        "k_cache": cache,
        "v_cache": cache.clone(),
        "slot_mapping": torch.zeros(3, dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qkv", torch.zeros(8, 3, 16), r"qkv must have shape \[T"),
        ("qkv", torch.zeros(3, 4 * 16), "more than 4 times, got 64 elements"),
        ("qkv", torch.zeros(8 * 16, 3).T, "qkv must be contiguous"),
        ("qkv", torch.zeros(3, 8 * 16, dtype=torch.float64), "qkv must be one of"),
        ("v_cache", torch.zeros(2, 2, 16, 8), "v_cache must have shape"),
        ("k_norm", None, "must both be given, or neither"),
        ("q_norm", torch.ones(16).bfloat16(), "q_norm must be torch.float32"),
        ("positions", torch.zeros(3, dtype=torch.int64), "positions must be torch.int32"),
        ("slot_mapping", torch.zeros(4, dtype=torch.int32), "slot_mapping must have shape"),
        ("cos_sin", torch.zeros(9, 16).bfloat16(), r"cos_sin must be torch.float32 \[P, D\]"),
        ("cos_sin", torch.zeros(9, 8), "cos_sin must have shape"),
    ],
)
def test_refuses(name, value, message, arguments):
    with pytest.raises(KernelError, match=f"rope: .*{message}"):
        rope(**{**arguments, name: value})
