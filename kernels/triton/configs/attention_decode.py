"""Launch settings of attention's decode kernels, and the key tiles that prefill shares."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.configs.table_file import read_table, table_file
from qwell.kernels.triton.launch import pick

SPLIT = 256
"""Keys that one program attends to, and that are summed before they meet other keys.

Part of what an output's bits depend on, so neither table nor batch has a say in it. 256 gives a
single sequence of 8k tokens and 8 key/value heads two programs an SM; parts cost 3 % of what the
keys and values of a split cost to read.
"""


class Settings(NamedTuple):
    """Serves heads of up to `max_head_dim` and elements of up to `max_element_size` bytes.

    Keys are taken `block_n` at a time: 16 or more, and a divisor of SPLIT.
    """

    max_head_dim: int
    max_element_size: int
    block_n: int
    num_warps: int
    num_stages: int


ROWS = read_table(table_file(__file__), "ROWS", Settings)
"""Elements of four bytes are multiplied without tensor cores. Two or three tiles are in flight a
program, with two to four programs an SM; on Hopper that is more than memory needs, while sm_86,
sm_89 and sm_120 have but 100 KiB of shared memory an SM."""


def settings(arch: str, head_dim: int, element_size: int) -> Settings:
    """Settings for heads of `head_dim` elements of `element_size` bytes."""
    return pick(
        ROWS,
        arch,
        lambda row: head_dim <= row.max_head_dim and element_size <= row.max_element_size,
    )
