"""What is measured: prompts and decodes, at depths and batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for

Phase = Literal["prefill", "decode"]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        phase: a prompt's tokens in steps as a server makes them, or steps of one token.
        depth: tokens that each sequence has in the cache before.
        batch: sequences.
        tokens: that each sequence computes.
    """

    phase: Phase
    depth: int
    batch: int
    tokens: int

    @property
    def length(self) -> int:
        """Of a sequence at the end."""
        return self.depth + self.tokens

    @property
    def cache_tokens(self) -> int:
        """What the cache must hold, in whole blocks."""
        return self.batch * blocks_for(self.length) * BLOCK_SIZE


def all_cases(
    prefill: int, decode: int, depths: Sequence[int], batches: Sequence[int]
) -> list[Case]:
    """Prompts of one sequence at every depth, decodes at every depth and batch size.

    0 tokens of prefill or decode leave these out.
    """
    prompts = [Case(phase="prefill", depth=d, batch=1, tokens=prefill) for d in depths if prefill]
    decodes = [
        Case(phase="decode", depth=d, batch=b, tokens=decode)
        for d in depths
        for b in batches
        if decode
    ]
    return prompts + decodes
