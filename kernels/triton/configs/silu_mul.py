"""Launch settings of silu_mul."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves rows of up to `max_width` outputs with programs of `block` outputs."""

    max_width: int
    block: int
    num_warps: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Eight outputs a thread: a 128-bit access of each of three tensors of 16-bit elements."""


def settings(arch: str, width: int) -> Settings:
    """Settings for rows of `width` outputs."""
    return pick(ROWS, arch, lambda row: width <= row.max_width)
