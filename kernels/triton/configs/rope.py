"""Launch settings of rope."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """A program has about `block` pairs of coordinates of one token, for `num_warps` warps."""

    block: int
    num_warps: int


# Eight pairs a thread: their two halves are loads of 128 bits each for 16-bit elements. Programs
# are small because a single token has only a few thousand coordinates for the whole GPU.
_WARPS_OF_64 = (Settings(block=512, num_warps=1),)

ROWS = {
    "default": (Settings(block=512, num_warps=2),),
    "gfx942": _WARPS_OF_64,
    "gfx950": _WARPS_OF_64,
}


def settings(arch: str) -> Settings:
    """Settings for any shape; a program's share has no say in the bits of a head."""
    return pick(ROWS, arch, lambda _: True)
