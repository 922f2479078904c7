"""Launch settings of embedding."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves rows of up to `max_width` elements with programs of `block` elements."""

    max_width: int
    block: int
    num_warps: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Eight elements a thread: a 128-bit access of 16-bit elements."""


def settings(arch: str, width: int) -> Settings:
    """Settings for a table with rows of `width` elements."""
    return pick(ROWS, arch, lambda row: width <= row.max_width)
