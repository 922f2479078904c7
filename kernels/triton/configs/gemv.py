"""Launch settings of norm_linear, norm_linear_silu_mul and linear_add."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves weights of up to `max_n` rows: programs of block_n rows, block_k columns at a time.

    block_n is even: a row of gate goes with one of up. block_k is at least what the threads of
    a program load at once, 128 bits each.
    """

    max_n: int
    block_n: int
    block_k: int
    num_warps: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Some programs for every SM of a large GPU, and 16 KiB or more of the weight in flight on each."""


def settings(arch: str, n: int) -> Settings:
    """Settings for a weight of n rows and any step."""
    return pick(ROWS, arch, lambda row: n <= row.max_n)
