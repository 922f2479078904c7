"""Launch settings of linear."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NamedTuple

from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves up to `max_rows` tokens with tiles of block_n weight rows and block_m tokens.

    spread: parts of K go to programs of their own, because tiles alone are too few to keep a GPU
    busy; fp32 sums of the parts then pass through memory.

    Neither tiles nor spread may change the order of summing, so block_n keeps to whole 64-row
    tensor core instructions at 4 warps each.
    """

    max_rows: int
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    spread: bool


ANY = sys.maxsize

_DENSE = (
    Settings(16, 16, 64, num_warps=4, num_stages=5, spread=True),
    Settings(64, 64, 64, num_warps=4, num_stages=4, spread=True),
    Settings(256, 128, 64, num_warps=4, num_stages=3, spread=True),
    Settings(ANY, 128, 128, num_warps=8, num_stages=3, spread=False),
)
_DENSE_CDNA = (  # 64 KiB of shared memory, warps of 64 threads
    Settings(16, 16, 64, num_warps=2, num_stages=3, spread=True),
    Settings(64, 64, 64, num_warps=4, num_stages=2, spread=True),
    Settings(ANY, 128, 128, num_warps=8, num_stages=2, spread=False),
)
# 32 tokens rather than 16: their 32 columns are then one 128-bit load a thread.
_PACKED = (
    Settings(32, 32, 64, num_warps=4, num_stages=3, spread=True),
    Settings(256, 64, 64, num_warps=4, num_stages=3, spread=True),
    Settings(ANY, 64, 128, num_warps=8, num_stages=3, spread=False),
)
_PACKED_SM_120 = (  # 64 tokens spill there
    Settings(256, 32, 64, num_warps=4, num_stages=3, spread=True),
    Settings(ANY, 32, 128, num_warps=8, num_stages=3, spread=False),
)
_PACKED_CDNA = (
    Settings(32, 32, 64, num_warps=2, num_stages=2, spread=True),
    Settings(ANY, 64, 64, num_warps=4, num_stages=2, spread=True),
)
# Without tensor cores: for finding errors, not for speed.
_FLOAT32 = (
    Settings(64, 16, 64, num_warps=4, num_stages=2, spread=True),
    Settings(ANY, 16, 64, num_warps=4, num_stages=2, spread=False),
)

DENSE = {"default": _DENSE, "gfx942": _DENSE_CDNA, "gfx950": _DENSE_CDNA}
PACKED = {
    "default": _PACKED,
    "sm_120": _PACKED_SM_120,
    "gfx942": _PACKED_CDNA,
    "gfx950": _PACKED_CDNA,
}
FLOAT32 = {"default": _FLOAT32}


def settings(arch: str, table: Mapping[str, tuple[Settings, ...]], rows: int) -> Settings:
    """Settings of `table` (DENSE, PACKED, or FLOAT32 for both at that dtype) for `rows` tokens."""
    return pick(table, arch, lambda row: rows <= row.max_rows)


def part_width(n: int, k: int) -> int:
    """Columns of K in one part of the sum for a weight [n, k]: a matter of the weight alone.

    Parts times tiles of 64 rows come to about 128 programs, one for each core of a large GPU,
    as long as a part has 512 columns to overlap its loads in. Parts are whole tiles of every
    format.
    """
    parts = max(128 // -(-n // 64), 1)
    return max(-(-k // parts // 256) * 256, 512)
