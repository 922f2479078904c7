"""Launch settings of logprobs."""

from __future__ import annotations

from typing import NamedTuple

from qwell.kernels.triton.launch import pick


class Settings(NamedTuple):
    """A program reads its row `block` logits at a time with `num_warps` warps.

    Up to `capacity` candidates of a row are copied aside; a row with more is read again instead.
    """

    block: int
    num_warps: int
    capacity: int


ROWS = {"default": (Settings(block=4096, num_warps=16, capacity=4096),)}


def settings(arch: str) -> Settings:
    """Settings for any vocabulary; the batch has no say in a row's bits."""
    return pick(ROWS, arch, lambda _: True)
