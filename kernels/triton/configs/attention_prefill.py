"""Launch settings of attention's prefill kernel; its key tiles are those of decode."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves heads of up to `max_head_dim` and elements of up to `max_element_size` bytes.

    A program has `block_m` rows, or as many as query heads share a key/value head if more.
    """

    max_head_dim: int
    max_element_size: int
    block_m: int
    num_warps: int
    num_stages: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Registers limit all of these: a row keeps the split it works on beside those already merged.
Elements of four bytes are multiplied without tensor cores."""


def settings(arch: str, head_dim: int, element_size: int) -> Settings:
    """Settings for heads of `head_dim` elements of `element_size` bytes."""
    return pick(
        ROWS,
        arch,
        lambda row: head_dim <= row.max_head_dim and element_size <= row.max_element_size,
    )
