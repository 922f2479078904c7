"""The Triton rope_attention as a GPU would run it: its machine code and its refusals."""

from __future__ import annotations

import re

import pytest
import torch

from qwell.bench.kernels.binary import read_facts
from qwell.bench.kernels.compile import compile_only
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.rope_attention import rope_attention


def _compiled(arch, num_heads, num_kv_heads, head_dim, with_norms, window):
    """Facts of the one kernel of a step of one sequence in bfloat16."""

    def meta(*shape, dtype=torch.bfloat16):
        return torch.empty(*shape, dtype=dtype, device="meta")

    index = meta(1, dtype=torch.int32)
    norm = meta(head_dim) if with_norms else None
    cache = meta(100, num_kv_heads, 16, head_dim)
    with compile_only(arch) as launches:
        rope_attention(
            meta(1, (num_heads + 2 * num_kv_heads) * head_dim),
            index,
            meta(4096, head_dim, dtype=torch.float32),
            norm,
            norm,
            1e-6,
            cache,
            cache,
            index,
            meta(1, 64, dtype=torch.int32),
            index,
            1000,
            head_dim**-0.5,
            window,
        )
    (launch,) = launches
    return read_facts(launch.kernel)


@pytest.mark.parametrize(
    ("arch", "num_heads", "num_kv_heads", "head_dim", "with_norms", "window"),
    [
        ("sm_80", 16, 8, 128, True, None),
        ("sm_90", 32, 8, 128, True, None),
        ("sm_90", 28, 4, 128, False, 4096),
        ("sm_120", 14, 2, 64, False, None),
        ("gfx942", 32, 8, 128, True, None),
    ],
)
def test_one_kernel_with_matrix_units_and_wide_loads_and_no_local_memory(
    arch, num_heads, num_kv_heads, head_dim, with_norms, window
):
    facts = _compiled(arch, num_heads, num_kv_heads, head_dim, with_norms, window)
    assert facts.tensor > 0
    assert facts.local == 0
    assert facts.wide_load_share >= 0.9


@pytest.fixture
def arguments():
    """Valid arguments: 2 sequences, 4 heads over 2 of 16."""
    cache = torch.zeros(3, 2, 16, 16)
    index = torch.zeros(2, dtype=torch.int32)
    return {
        "qkv": torch.zeros(2, 8 * 16),
        "positions": index,
        "cos_sin": torch.zeros(9, 16),
        "q_norm": torch.ones(16),
        "k_norm": torch.ones(16),
        "eps": 1e-6,
        "k_cache": cache,
        "v_cache": cache.clone(),
        "slot_mapping": index,
        "block_table": torch.zeros(2, 3, dtype=torch.int32),
        "seq_lens": index,
        "max_seq_len": 1,
        "scale": 0.25,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": torch.zeros(2, 4 * 16)}, "more than 4 times, got 64 elements"),
        ({"qkv": torch.zeros(2, 7 * 16)}, "3 heads of q cannot share 2 of k_cache"),
        ({"qkv": torch.zeros(2, 128, dtype=torch.float64)}, "qkv must be one of"),
        ({"k_norm": None}, "must both be given, or neither"),
        ({"slot_mapping": torch.zeros(2, dtype=torch.int64)}, "slot_mapping must be torch.int32"),
        ({"v_cache": torch.zeros(3, 2, 16, 16).half()}, "v_cache must be torch.float32"),
        ({"block_table": torch.zeros(2, 3)}, "block_table must be torch.int32 [S, blocks]"),
        (
            {
                "block_table": torch.zeros(3, 3, dtype=torch.int32),
                "seq_lens": torch.zeros(3, dtype=torch.int32),
            },
            "block_table must have shape (2, 3), got (3, 3)",
        ),
        (
            {"block_table": torch.zeros(3, 2, dtype=torch.int32).T},
            "block_table must be contiguous",
        ),
        ({"seq_lens": torch.zeros(3, dtype=torch.int32)}, "seq_lens must have shape (2,)"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"window": 0}, "window must be positive or None, got 0"),
    ],
)
def test_refuses(changes, message, arguments):
    with pytest.raises(KernelError, match=f"rope_attention: .*{re.escape(message)}"):
        rope_attention(**{**arguments, **changes})


def _of_shape(arguments, head_dim, block_size):
    cache = torch.zeros(3, 2, block_size, head_dim)
    return {
        **arguments,
        "qkv": torch.zeros(2, 8 * head_dim),
        "cos_sin": torch.zeros(9, head_dim),
        "q_norm": torch.ones(head_dim),
        "k_norm": torch.ones(head_dim),
        "k_cache": cache,
        "v_cache": cache.clone(),
    }


@pytest.mark.parametrize("head_dim", [14, 258])
def test_refuses_heads_that_attention_does_not_take(head_dim, arguments):
    with pytest.raises(KernelError, match=rf"an even head size in 16\.\.256, got {head_dim}"):
        rope_attention(**_of_shape(arguments, head_dim, 16))


def test_refuses_blocks_that_attention_does_not_take(arguments):
    with pytest.raises(KernelError, match="blocks of a power of two, got 12"):
        rope_attention(**_of_shape(arguments, 16, 12))


def test_refuses_more_tokens_than_a_fused_step_has(arguments):
    many = {
        **arguments,
        "qkv": torch.zeros(5, 8 * 16),
        "block_table": torch.zeros(5, 3, dtype=torch.int32),
        **{
            name: torch.zeros(5, dtype=torch.int32)
            for name in ("positions", "slot_mapping", "seq_lens")
        },
    }
    with pytest.raises(KernelError, match="at most 4 tokens, got 5"):
        rope_attention(**many)
