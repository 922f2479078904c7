"""Launch settings of logprobs."""

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


def settings(arch: str) -> Settings:
    """Settings for any vocabulary; the batch has no say in a row's bits."""
    return pick(ROWS, arch, lambda _: True)
