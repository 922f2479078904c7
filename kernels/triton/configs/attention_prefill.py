"""Launch settings of attention's prefill kernel; its key tiles are those of decode."""

from __future__ import annotations

from typing import NamedTuple

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


_WIDE = (Settings(256, 4, 16, 4, 2),)  # products without tensor cores
_SMALL = (
    Settings(64, 2, 64, 4, 3),
    Settings(128, 2, 64, 8, 2),
    Settings(256, 2, 32, 8, 2),
    *_WIDE,
)
_AMD = (
    Settings(64, 2, 128, 4, 2),
    Settings(128, 2, 64, 4, 2),
    Settings(256, 2, 32, 4, 2),
    *_WIDE,
)

# Registers limit all of these: a row keeps the split it works on beside those already merged.
ROWS = {
    "default": (
        Settings(64, 2, 64, 4, 3),
        Settings(128, 2, 64, 4, 2),
        Settings(256, 2, 64, 8, 2),
        *_WIDE,
    ),
    "sm_86": _SMALL,
    "sm_89": _SMALL,
    "sm_90": (Settings(128, 2, 128, 8, 3), Settings(256, 2, 64, 8, 2), *_WIDE),
    "sm_100": (Settings(64, 2, 128, 8, 3), Settings(256, 2, 64, 8, 2), *_WIDE),
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
