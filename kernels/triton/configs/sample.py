"""Launch settings of sample."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """A program reads its row `block` logits at a time with `num_warps` warps.

    Up to `capacity` candidates of a row are copied aside; a row with more is read again instead.
    """

    block: int
    num_warps: int
    capacity: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""A program has an SM to itself until the batch is as large as the GPU. Its passes are unrolled
twice, which keeps 32 KiB of loads in flight, about what memory needs; with twice the block or
the warps registers spill."""


def settings(arch: str) -> Settings:
    """Settings for any vocabulary; neither these nor the batch have a say in what is drawn."""
    return pick(ROWS, arch, lambda _: True)
