"""A request on its way through steps: what of it is known, drawn, computed and cached.

A step is scheduled from how many tokens a sequence has; the last of them may still be in flight:
drawn on the device by the step before, its id not known here yet.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import NamedTuple

from qwell.runtime.constraint import NO_LIMIT, Constraint
from qwell.runtime.logit_adjustment import LogitAdjustment, adjustment_of
from qwell.runtime.messages import FinishReason
from qwell.runtime.sampling_params import SamplingParams


@dataclass(eq=False)
class Sequence:
    """A request on its way: its tokens, and how many of them are in the cache.

    Attributes:
        token_ids: the tokens that are known.
        priority: lower runs first.
        cache_salt: only sequences of the same salt share cached prefixes.
        arrival: how many came before it.
        num_in_flight: tokens after these that are drawn, but not known yet.
        num_computed: tokens that are in the cache once the steps in flight have run.
        blocks: where they are, and where the rest of the prompt will be.
        block_keys: names of the blocks that `token_ids` fill, as far as they were needed.
        num_registered: blocks that can be found by their name.
        num_cached_tokens: prompt tokens that were in the cache when it was first admitted.
        started_s: when that was, by the clock of whoever schedules.
        end_ids: ids that end it.
        late_ids: ids that follow `min_tokens` others at the earliest.
        adjustment: what is done to its logits, if anything is.
        constraint: which ids may come next, if not all may.
        num_scored: leading prompt tokens whose log-probabilities have been taken, or need not be:
            the first has none.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    end_ids: frozenset[int] = frozenset()
    late_ids: frozenset[int] = frozenset()
    priority: int = 0
    cache_salt: str = ""
    arrival: int = 0
    num_in_flight: int = 0
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    num_cached_tokens: int | None = None
    started_s: float = 0.0
    adjustment: LogitAdjustment | None = field(init=False)
    constraint: Constraint | None = None
    num_scored: int = 1

    def __post_init__(self) -> None:
        self.adjustment = adjustment_of(
            self.params, self.token_ids, self.num_prompt_tokens, self.late_ids
        )

    @property
    def wants_scores(self) -> bool:
        """There are prompt tokens whose log-probabilities are wanted and not taken yet."""
        wanted = self.params.prompt_logprobs is not None
        return wanted and self.num_scored < self.num_prompt_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) + self.num_in_flight - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) + self.num_in_flight - self.num_prompt_tokens

    @property
    def num_left(self) -> int:
        """Tokens that it may still generate."""
        return self.params.max_tokens - self.num_generated

    @property
    def num_free(self) -> int:
        """So many tokens after those that are known may be any, whichever come before them."""
        return NO_LIMIT if self.constraint is None else self.constraint.num_free

    def holds_back(self, num_generated: int) -> bool:
        """Whether `late_ids` are banned from the next logits, with so many generated.

        A mask, where there is one, does it in its own way.
        """
        return num_generated < self.params.min_tokens and self.num_free > 0

    @property
    def most_guesses(self) -> int:
        """So many tokens may be guessed: what is drawn behind each is free, or can be masked."""
        constraint = self.constraint
        is_open = constraint is None or constraint.checks_guesses
        return NO_LIMIT if is_open else self.num_free - 1

    @property
    def awaits_id(self) -> bool:
        """Which ids may come next depends on one that is in flight."""
        return self.num_in_flight > 0 and self.num_in_flight >= self.num_free

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last known token is the last one; None if it is not."""
        known = len(self.token_ids) - self.num_prompt_tokens
        is_end = self.token_ids[-1] in self.end_ids
        if is_end and self.params.min_tokens < known <= self.params.max_tokens:
            return "stop"
        return "length" if known >= self.params.max_tokens else None

    def take(self, token_ids: SequenceOf[int]) -> list[int]:
        """The first token in flight and those behind right guesses are known; as far as its end."""
        self.arrived(token_ids[0])
        taken = 1
        while taken < len(token_ids) and self.finish_reason is None:
            self.accepted(token_ids[taken])
            taken += 1
        return list(token_ids[:taken])

    def arrived(self, token_id: int) -> None:
        """The first token in flight is known."""
        self.num_in_flight -= 1
        self._append(token_id)

    def accepted(self, token_id: int) -> None:
        """A guess was right: the last token is in the cache, and this one follows."""
        self.num_computed += 1
        self._append(token_id)

    def _append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if self.adjustment is not None:
            self.adjustment.generated(token_id)
        if self.constraint is not None:
            self.constraint.accept(token_id)


class Chunk(NamedTuple):
    """Tokens start .. end of a sequence, to be computed in one step; then those of a guess.

    Attributes:
        draft_ids: guessed to follow the last token; only where the chunk completes its sequence.
    """

    sequence: Sequence
    start: int
    end: int
    draft_ids: SequenceOf[int] = ()

    @property
    def stop(self) -> int:
        """Where the computed tokens end, guesses included."""
        return self.end + len(self.draft_ids)

    @property
    def completes(self) -> bool:
        """The next token can be sampled after this chunk."""
        return self.end == self.sequence.num_tokens

    @property
    def num_drawn(self) -> int:
        """Tokens that are drawn after this chunk: one, and one behind every guess."""
        return 1 + len(self.draft_ids) if self.completes else 0

    @property
    def scored(self) -> range:
        """Places of the prompt tokens whose log-probabilities this chunk's logits are to give."""
        sequence = self.sequence
        if sequence.params.prompt_logprobs is None:
            return range(0)
        first = max(sequence.num_scored, self.start + 1)
        return range(first, min(self.end + 1, sequence.num_prompt_tokens))
