"""Drafts without a model: what followed the last few tokens when they stood there before.

Prompt lookup decoding (Saxena 2023; "n-gram speculation" in vLLM and Hugging Face).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

import numpy as np

from qwell.runtime.sequence import Sequence

# Two tokens in common are often chance; more than five say little more than five do.
LEAST_MATCH = 3
MOST_MATCH = 5


class PromptLookups:
    """Drafts for many sequences, each from its own tokens."""

    def __init__(self) -> None:
        self._lookups: dict[Sequence, PromptLookup] = {}

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """As Drafter."""
        guesses = {}
        for sequence, count in wanted.items():
            lookup = self._lookups.setdefault(sequence, PromptLookup())
            lookup.extend(sequence.token_ids[len(lookup) :])
            guess = lookup.propose(count)
            if guess:
                guesses[sequence] = guess
        return guesses

    def forget(self, sequence: Sequence) -> None:
        """As Drafter."""
        self._lookups.pop(sequence, None)


class PromptLookup:
    """The tokens of one sequence, to be searched for their own end."""

    def __init__(self) -> None:
        self._ids = np.empty(256, dtype=np.int32)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def extend(self, token_ids: SequenceOf[int]) -> None:
        """Append tokens."""
        size = self._size + len(token_ids)
        if size > len(self._ids):
            self._ids = np.resize(self._ids, 2 * size)
        self._ids[self._size : size] = token_ids
        self._size = size

    def propose(self, count: int) -> list[int]:
        """The `count` tokens that would follow; [] where the end was not seen before.

        They follow the longest match of the end, up to MOST_MATCH tokens, and the last of those
        that are equally long. A match that runs into the end is a repetition, and goes on as one.
        """
        end = self._size - 1
        if end < LEAST_MATCH:
            return []
        ids = self._ids
        matches = np.flatnonzero(ids[:end] == ids[end])
        for length in range(1, MOST_MATCH):
            longer = matches[matches >= length]
            longer = longer[ids[longer - length] == ids[end - length]]
            if not len(longer):
                if length < LEAST_MATCH:
                    return []
                break
            matches = longer
        follows = int(matches[-1]) + 1
        period = self._size - follows
        known = ids[follows : min(follows + count, self._size)].tolist()
        return [known[i % period] for i in range(count)]
