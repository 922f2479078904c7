"""Launch settings of attention's decode kernels, and the key tiles that prefill shares."""

from __future__ import annotations

from typing import NamedTuple

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


_WIDE = (Settings(128, 4, 16, 4, 2), Settings(256, 4, 16, 8, 2))  # products without tensor cores

# Two or three tiles in flight a program, and two to four programs an SM: more than memory needs.
_HOPPER = (Settings(128, 2, 64, 4, 3), Settings(256, 2, 32, 4, 3), *_WIDE)
_SMALL = (  # 100 KiB of shared memory an SM
    Settings(64, 2, 64, 4, 3),
    Settings(128, 2, 32, 4, 3),
    Settings(256, 2, 32, 8, 2),
    *_WIDE,
)
_AMD = (Settings(256, 2, 32, 4, 2), *_WIDE)

ROWS = {
    "default": (
        Settings(64, 2, 64, 4, 3),
        Settings(128, 2, 32, 4, 4),
        Settings(256, 2, 32, 8, 3),
        *_WIDE,
    ),
    "sm_86": _SMALL,
    "sm_89": _SMALL,
    "sm_90": _HOPPER,
    "sm_100": _HOPPER,
    "sm_120": _SMALL,
    "gfx942": _AMD,
    "gfx950": _AMD,
}


def settings(arch: str, head_dim: int, element_size: int) -> Settings:
    """Settings for heads of `head_dim` elements of `element_size` bytes."""
    return pick(
        ROWS,
        arch,
        lambda row: head_dim <= row.max_head_dim and element_size <= row.max_element_size,
    )
