"""The Triton attention as a GPU would run it: its machine code and its refusals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from qwell.bench.kernels.binary import instructions_of
from qwell.bench.kernels.compile import compile_only
from qwell.kernels.errors import KernelError
from qwell.kernels.ops import Extent
from qwell.kernels.triton.attention import attention
from qwell.kernels.triton.attention_decode import programs_per_head
from qwell.kernels.triton.configs import attention_decode, attention_prefill

MATRIX_UNITS = {"sm_80": r"HMMA", "sm_90": r"HMMA|HGMMA", "gfx942": r"v_s?mfma_"}


@dataclass(frozen=True)
class Binary:
    name: str
    instructions: tuple[str, ...]

    def matching(self, pattern: str) -> list[str]:
        return [name for name in self.instructions if re.match(pattern, name)]


@cache
def _compiled(arch, num_heads, num_kv_heads, head_dim, dtype, block_size, window):
    """The kernels of a step with one decode and one prefill: decode, merge, prefill."""
    device = torch.device("meta")
    cache = torch.empty(100, num_kv_heads, block_size, head_dim, dtype=dtype, device=device)
    index = torch.empty(2, 64, dtype=torch.int32, device=device)
    with compile_only(arch) as launches:
        attention(
            torch.empty(100, num_heads, head_dim, dtype=dtype, device=device),
            cache,
            cache,
            index,
            torch.empty(3, dtype=torch.int32, device=device),
            torch.empty(2, dtype=torch.int32, device=device),
            Extent(num_decodes=1, max_query_len=99, max_seq_len=1000),
            head_dim**-0.5,
            window,
        )
    return [Binary(launch.kernel.name, instructions_of(launch.kernel)) for launch in launches]


@pytest.mark.parametrize(
    ("arch", "num_heads", "num_kv_heads", "head_dim", "block_size", "window"),
    [
        ("sm_80", 16, 8, 128, 16, None),
        ("sm_90", 16, 8, 128, 16, None),
        ("gfx942", 16, 8, 128, 16, None),
        ("sm_90", 14, 2, 64, 64, None),
        ("sm_90", 28, 4, 128, 16, 4096),
    ],
)
def test_uses_matrix_units_and_no_local_memory(
    arch, num_heads, num_kv_heads, head_dim, block_size, window
):
    binaries = _compiled(
        arch, num_heads, num_kv_heads, head_dim, torch.bfloat16, block_size, window
    )
    decode, merge, prefill = binaries
    assert (decode.name, merge.name, prefill.name) == (
        "attention_decode_kernel",
        "attention_merge_kernel",
        "attention_prefill_kernel",
    )
    for binary in binaries:
        assert not binary.matching(r"LDL|STL|scratch_")
    assert decode.matching(MATRIX_UNITS[arch])
    assert prefill.matching(MATRIX_UNITS[arch])


def test_prefill_on_hopper_multiplies_by_warp_groups():
    *_, prefill = _compiled("sm_90", 16, 8, 128, torch.bfloat16, 16, None)
    assert prefill.matching("HGMMA")
    assert not prefill.matching("HMMA")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_decode_loads_128_bits_at_a_time(arch):
    decode, _, _ = _compiled(arch, 16, 8, 128, torch.bfloat16, 16, None)
    wide = decode.matching(r"LDG(STS)?\.(.*\.)?128")
    assert len(wide) >= 0.9 * len(decode.matching(r"LDG(STS)?\."))


def test_fp32_compiles_without_local_memory():
    for binary in _compiled("sm_90", 4, 2, 128, torch.float32, 16, None):
        assert not binary.matching(r"LDL|STL")


@pytest.mark.parametrize("config", [attention_decode, attention_prefill])
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
def test_every_table_serves_every_head(head_dim, element_size, config):
    for arch in config.ROWS:
        assert config.settings(arch, head_dim, element_size) in config.ROWS[arch]


def test_splits_consist_of_whole_tiles():
    for rows in attention_decode.ROWS.values():
        assert all(attention_decode.SPLIT % row.block_n == 0 for row in rows)


@pytest.mark.parametrize(
    ("num_splits", "num_heads", "expected"),
    [(2, 1, 2), (128, 8, 128), (1000, 8, 512), (128, 2048, 16), (4, 2048, 4)],
)
def test_programs_per_head(num_splits, num_heads, expected):
    assert programs_per_head(num_splits, num_heads) == expected


@pytest.fixture
def arguments():
    """Valid arguments of attention: 2 sequences, 4 heads over 2 of 16."""
    cache = torch.zeros(3, 2, 16, 16)
    return {
        "q": torch.zeros(5, 4, 16),
        "k_cache": cache,
        "v_cache": cache.clone(),
        "block_table": torch.zeros(2, 3, dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, 1, 5], dtype=torch.int32),
        "seq_lens": torch.tensor([1, 4], dtype=torch.int32),
        "extent": Extent(1, 4, 4),
        "scale": 0.25,
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", torch.zeros(5, 64), r"q must have shape \[T, Hq, D\]"),
        ("q", torch.zeros(5, 3, 16), "3 heads of q cannot share 2 of k_cache"),
        ("q", torch.zeros(5, 4, 15), r"an even head size in 16\.\.256, got 15"),
        ("q", torch.zeros(5, 4, 8), r"an even head size in 16\.\.256, got 8"),
        ("q", torch.zeros(5, 4, 16, dtype=torch.float64), "q must be one of"),
        ("q", torch.zeros(4, 5, 16).transpose(0, 1), "q must be contiguous"),
        ("k_cache", torch.zeros(3, 2, 12, 16), "blocks of a power of two, got 12"),
        ("v_cache", torch.zeros(3, 2, 16, 16).half(), "v_cache must be torch.float32"),
        ("block_table", torch.zeros(2, 3, dtype=torch.int64), "block_table must be torch.int32"),
        ("cu_seqlens_q", torch.zeros(2, dtype=torch.int32), "cu_seqlens_q must have shape"),
        ("seq_lens", torch.zeros(2, dtype=torch.int64), "seq_lens must be torch.int32"),
        ("extent", Extent(3, 4, 4), "3 of 2 sequences cannot be decodes"),
        ("scale", 0.0, "scale must be positive, got 0.0"),
        ("window", 0, "window must be positive or None, got 0"),
    ],
)
def test_refuses(name, value, message, arguments):
    with pytest.raises(KernelError, match=f"attention: .*{message}"):
        attention(**{**arguments, name: value})
