"""Launch settings of rms_norm."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves rows of up to `max_width` elements with `num_warps` warps a row."""

    max_width: int
    num_warps: int


MAX_WIDTH = 16384
"""Longest row. A thread holds 64 of its elements at 8 warps; twice that spills registers."""

ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Eight elements a thread make one 128-bit access of 16-bit elements; wider rows give a thread
more of them before they take more warps, whose partial sums meet in shared memory."""


def settings(arch: str, width: int) -> Settings:
    """Settings for rows of `width` elements; their number has no say in the bits of a row.

    Raises KernelError above MAX_WIDTH.
    """
    return pick(ROWS, arch, lambda row: width <= row.max_width)
