"""Launch settings of linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
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


_FILE = table_file(__file__)

DENSE = read_table(_FILE, "DENSE", Settings)
"""CDNA has 64 KiB of shared memory and warps of 64 threads."""

PACKED = read_table(_FILE, "PACKED", Settings)
"""At least 32 tokens: their 32 columns are then one 128-bit load a thread."""

FLOAT32 = read_table(_FILE, "FLOAT32", Settings)
"""Without tensor cores: for finding errors, not for speed."""


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
