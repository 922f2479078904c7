"""What the measuring process and the one that it starts say to each other, a JSON line each."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Started(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first token is there.

    Attributes:
        dtype: of activations.
        weight_bytes: of the matrices that a decode step reads.
        cache_bytes: of the whole cache pool.
    """

    dtype: str
    weight_bytes: int
    cache_bytes: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """There is no engine, and why."""

    reason: str


class Lap(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A case, run once.

    Attributes:
        tokens: computed in all.
        bytes_moved, flops: that the steps need, see `qwell.bench.work.Work`.
        resident_bytes: memory of the process after it; None where the system does not tell.
    """

    seconds: float
    tokens: int
    bytes_moved: int
    flops: int
    resident_bytes: int | None


Answer: TypeAlias = Started | Failed | Lap
