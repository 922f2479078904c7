"""Launch settings of embedding."""

from __future__ import annotations

import sys
from typing import NamedTuple

from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """Serves rows of up to `max_width` elements with programs of `block` elements."""

    max_width: int
    block: int
    num_warps: int


# Eight elements a thread: a 128-bit access of 16-bit elements.
ROWS = {
    "default": (Settings(256, 256, 1), Settings(sys.maxsize, 1024, 4)),
    "gfx942": (Settings(512, 512, 1), Settings(sys.maxsize, 1024, 2)),
    "gfx950": (Settings(512, 512, 1), Settings(sys.maxsize, 1024, 2)),
}


def settings(arch: str, width: int) -> Settings:
    """Settings for a table with rows of `width` elements."""
    return pick(ROWS, arch, lambda row: width <= row.max_width)
