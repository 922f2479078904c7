"""Sequences to measure steps with: any tokens, blocks of their own."""

from __future__ import annotations

from collections.abc import Sequence

from qwell.runtime.kv_cache import blocks_for
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.scheduler import Sequence as Running

GREEDY = SamplingParams(temperature=0.0)


def sequences(lengths: Sequence[int], room: Sequence[int]) -> list[Running]:
    """Sequences of so many tokens, each with blocks for `room` tokens, from block 0 on."""
    result = []
    taken = 0
    for i, (length, tokens) in enumerate(zip(lengths, room, strict=True)):
        blocks = list(range(taken, taken + blocks_for(tokens)))
        taken += len(blocks)
        # Any ids do that every vocabulary has.
        ids = [(7 * i + 13 * place) % 256 for place in range(length)]
        result.append(Running(str(i), ids, length, GREEDY, seed=i, blocks=blocks))
    return result
