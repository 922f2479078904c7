"""Ids that a step has drawn: on the device at once, on the host when the step has run.

The next step starts before the host knows them: what it needs of them, it takes on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from qwell.runtime.sequence import Sequence
from qwell.runtime.step_logprobs import Scores
from qwell.runtime.transfer import to_host


class SampledIds:
    """The ids of a step in flight, one for each of its sequences that can be sampled.

    Attributes:
        sequences: whose ids they are, S of them.
        drafts: the guesses behind which ids were drawn too, for each sequence.
        limits: for some sequences how many of the ids drawn for them count at the most.
        ids: int32 [S + guesses] on the device, or a list where they are known at once.
        wait: returns the ids once the step has run.
        scores, prompt_scores: return the log-probabilities that the step took, likewise.
        broken: returns the places of ids that were drawn from no numbers, likewise.
    """

    def __init__(
        self,
        sequences: list[Sequence],
        ids: Tensor | list[int],
        drafts: SequenceOf[SequenceOf[int]] | None = None,
        scores: Scores = dict,
        prompt_scores: Scores = dict,
        limits: Mapping[Sequence, int] = MappingProxyType({}),
        broken: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        self.sequences = sequences
        self.drafts = [()] * len(sequences) if drafts is None else drafts
        self.ids = ids
        self.wait = (lambda: ids) if isinstance(ids, list) else to_host(ids)
        self.scores = scores
        self.prompt_scores = prompt_scores
        self.limits = limits
        self.broken = broken

    def by_sequence(self) -> Iterator[tuple[Sequence, list[int], SequenceOf[int], int]]:
        """Wait for the step; each sequence, its ids that count, the guesses before all but the
        first of these, and how many ids were drawn before the first from no numbers.
        """
        ids, broken = self.wait(), self.broken()
        row = 0
        for sequence, draft_ids in zip(self.sequences, self.drafts, strict=True):
            rows = range(row, row + 1 + len(draft_ids))
            row = rows.stop
            count = min(len(rows), self.limits.get(sequence, len(rows)))
            num_sound = next((i for i, r in enumerate(rows) if r in broken), len(rows))
            yield sequence, ids[rows.start : rows.start + count], draft_ids[: count - 1], num_sound

    @cached_property
    def rows(self) -> dict[Sequence, int]:
        """Place of a sequence among the ids, where nothing was guessed."""
        return {sequence: row for row, sequence in enumerate(self.sequences)}


class IdColumn:
    """A list of ids for the device, some of which may only be known there.

    Attributes:
        ids: the list, with 0 for every id that the host does not know.
    """

    def __init__(self, sampled: SampledIds | None) -> None:
        """`sampled` holds the ids in flight; None where there are none."""
        self.ids: list[int] = []
        self._sampled = sampled
        self._rows: dict[int, int] = {}  # place in `ids` -> row of the sampled ids

    def extend(self, ids: Iterable[int]) -> None:
        """Append ids that the host knows."""
        self.ids += ids

    def append_in_flight(self, sequence: Sequence) -> None:
        """Append the id that was drawn for a sequence by the step in flight."""
        if self._sampled is None:
            raise ValueError(f"no step is in flight that sampled {sequence.request_id!r}")
        self._rows[len(self.ids)] = self._sampled.rows[sequence]
        self.ids.append(0)

    @property
    def sources(self) -> list[int]:
        """Where each id stands in the sampled ids followed by `ids`; [] if all are known."""
        if self._sampled is None or not self._rows:
            return []
        count = len(self._sampled.sequences)
        return [self._rows.get(place, count + place) for place in range(len(self.ids))]

    def wait(self) -> list[int]:
        """The list with all ids, once the step in flight has run."""
        if self._sampled is None or not self._rows:
            return self.ids
        sampled, ids = self._sampled.wait(), list(self.ids)
        for place, row in self._rows.items():
            ids[place] = sampled[row]
        return ids

    def complete(self, ids: Tensor, sources: Tensor) -> Tensor:
        """`self.ids` and `self.sources` as int32 tensors -> the ids, without a wait."""
        if self._sampled is None or not self._rows:
            return ids
        drawn = self._sampled.ids
        if isinstance(drawn, list):
            drawn = torch.tensor(drawn, dtype=torch.int32)
        return torch.cat((drawn, ids)).index_select(0, sources)
