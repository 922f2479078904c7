"""Speculative decoding: tokens guessed ahead, that one step verifies together.

A step computes the guesses behind a sequence's last token, and draws at every place what plain
decoding would draw there: ids depend on a row's logits, the seed and the place alone, and logits
not on what else a step computes. Guesses are kept as far as they equal what was drawn, so the
tokens are those of plain decoding, greedy or sampled. A guess of one certain token is accepted as
often as rejection sampling (Leviathan et al. 2023) would accept it: with its probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

from qwell.runtime.sequence import Sequence

# A longer guess is seldom right to its end.
MOST_DRAFTS = 12

# Of all sequences of a step: each guess takes a row of logits.
MOST_STEP_DRAFTS = 32

# What is believed of guesses before any was verified, and how many of them that outweighs.
_PRIOR_ACCEPTANCE = 0.7
_PRIOR_WEIGHT = 0.5
# Of what a step has taught, so much is left after the next one: what a sequence repeats changes.
# Where every guess is refused, one that costs a share p of a step is tried again once less than
# _PRIOR_WEIGHT * _PRIOR_ACCEPTANCE / p refusals are remembered: 0.7 % of the time is lost so.
_MEMORY = 0.98
# Share of the last guesses in what guessing is believed to take.
_GAIN = 0.3


class Drafter(Protocol):
    """Where guesses come from."""

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """At most so many tokens to follow each sequence; nothing for one with no good guess.

        All ids of the sequences are known.
        """

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended, if it is known."""


@dataclass
class _History:
    """How the guesses for one sequence fared."""

    tried: float = 0.0
    accepted: float = 0.0

    def fade(self) -> None:
        self.tried *= _MEMORY
        self.accepted *= _MEMORY

    def worthwhile(self, price: float) -> int:
        """Tokens to guess: as many as are likelier to be accepted than a token costs."""
        acceptance = (_PRIOR_WEIGHT * _PRIOR_ACCEPTANCE + self.accepted) / (
            _PRIOR_WEIGHT + self.tried
        )
        count, likely = 0, acceptance
        while count < MOST_DRAFTS and likely > price:
            count += 1
            likely *= acceptance
        return count


class Speculator:
    """Guesses for the sequences of an engine, fewer where they are refused or cost much.

    Attributes:
        num_drafted, num_accepted: tokens guessed and verified since the start, and right ones.
    """

    def __init__(self, drafter: Drafter, clock: Callable[[], float]) -> None:
        """`clock`: seconds, from which it learns how long guessing takes."""
        self._drafter = drafter
        self._clock = clock
        self._histories: dict[Sequence, _History] = {}
        self._guess_s = 0.0
        self.num_drafted = 0
        self.num_accepted = 0

    def propose(
        self, sequences: SequenceOf[Sequence], *, step_s: float, token_s: float
    ) -> dict[Sequence, list[int]]:
        """Guesses for sequences that decode in the next step, their ids all known.

        Args:
            sequences: all that decode.
            step_s: time that the step takes without guesses.
            token_s: time that one more token takes.
        """
        if step_s == 0.0:
            return {}
        # A guess is worth its chance of a token, and costs what the step could yield meanwhile.
        price = (token_s + self._guess_s) * len(sequences) / step_s
        wanted = self._wanted(sequences, price)
        if not wanted:
            return {}
        start = self._clock()
        drafts = self._drafter.propose(wanted)
        count = sum(len(draft) for draft in drafts.values())
        if count:
            self._guess_s += _GAIN * ((self._clock() - start) / count - self._guess_s)
        return {
            sequence: draft
            if sequence.constraint is None
            else sequence.constraint.right_guesses(draft)
            for sequence, draft in drafts.items()
        }

    def _wanted(self, sequences: Iterable[Sequence], price: float) -> dict[Sequence, int]:
        room = MOST_STEP_DRAFTS
        wanted = {}
        for sequence in sequences:
            if not _is_guessable(sequence):
                continue
            history = self._histories.setdefault(sequence, _History())
            history.fade()
            # The step draws one token more than it verifies.
            left = sequence.params.max_tokens - sequence.num_generated - 1
            count = min(history.worthwhile(price), left, room, sequence.most_guesses)
            if count > 0:
                wanted[sequence] = count
                room -= count
        return wanted

    def verified(self, sequence: Sequence, *, drafted: int, accepted: int) -> None:
        """Learn from a step: guesses after a wrong one say nothing."""
        self.num_drafted += drafted
        self.num_accepted += accepted
        history = self._histories.get(sequence)
        if history is not None:
            history.tried += min(accepted + 1, drafted)
            history.accepted += accepted

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._histories.pop(sequence, None)
        self._drafter.forget(sequence)


def kept_ids(drawn: SequenceOf[int], draft: SequenceOf[int]) -> SequenceOf[int]:
    """Of the ids drawn at a token and behind each guess those that plain decoding draws too."""
    right = 0
    while right < len(draft) and draft[right] == drawn[right]:
        right += 1
    return drawn[: right + 1]


def _is_guessable(sequence: Sequence) -> bool:
    """Not where a draw depends on the tokens before it by more than its logits, or is scored."""
    adjustment = sequence.adjustment
    counts = adjustment is not None and adjustment.counts_tokens
    return not counts and sequence.params.logprobs is None
