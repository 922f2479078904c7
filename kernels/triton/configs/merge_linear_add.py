"""Launch settings of merge_linear_add."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves up to `max_tokens`: programs of block_n weight rows.

    They take heads of about block_k columns at a time, and block_s splits of those.
    """

    max_tokens: int
    block_n: int
    block_k: int
    block_s: int
    num_warps: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Every program reads all splits, from the L2 cache: 16 rows share that. A weight of 4096 rows then
takes half the reads that it takes with 8, and a program an SM or two; one of 1024 takes as long,
since a program reads as many splits and there are SMs for all.

The threads of a program take 8 columns each, and 4 splits of them in all, of as many sequences as
there are: more would spill registers.
"""


def settings(arch: str, tokens: int) -> Settings:
    """Settings for a step of `tokens` sequences."""
    return pick(ROWS, arch, lambda row: tokens <= row.max_tokens)
