"""Launch settings of rope."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """A program has about `block` pairs of coordinates of one token, for `num_warps` warps."""

    block: int
    num_warps: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Eight pairs a thread: their two halves are loads of 128 bits each for 16-bit elements. Programs
are small because a single token has only a few thousand coordinates for the whole GPU."""


def settings(arch: str) -> Settings:
    """Settings for any shape; a program's share has no say in the bits of a head."""
    return pick(ROWS, arch, lambda _: True)
