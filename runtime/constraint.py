"""Which ids may come next in one sequence, as grammars and thinking budgets have it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qwell.runtime.grammar import error_of
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.thinking import Thinking

if TYPE_CHECKING:
    from llguidance import LLMatcher

Bits = npt.NDArray[np.uint32]

NO_LIMIT = sys.maxsize
_ALL = np.uint32(0xFFFFFFFF)


def mask_words(vocab_size: int) -> int:
    """Words of a mask: a bit for every id, and one for the end of the text, which has no id."""
    return (vocab_size + 1 + 31) // 32


class _Stage(Enum):
    OPENING = auto()  # the first token may open a block of thoughts
    THINKING = auto()
    CLOSING = auto()  # ids are forced
    ANSWER = auto()


class Constraint:
    """Follows one sequence from its first generated token on."""

    def __init__(
        self,
        params: SamplingParams,
        end_ids: Collection[int],
        late_ids: Collection[int],
        vocab_size: int,
        matcher: LLMatcher | None,
    ) -> None:
        """`matcher` is the grammar's, at its start.

        `end_ids` are those that end the sequence, `late_ids` those held back by `min_tokens`.
        """
        self._matcher = matcher
        self._thinking = thinking = params.thinking
        self._forced: deque[int] = deque()
        self._num_thoughts = 0
        self._num_generated = 0
        self._end_ids = end_ids
        self._min_tokens = params.min_tokens
        self._late = _bits(late_ids, vocab_size)
        self._vocab_size = vocab_size
        self._bad_ids = params.bad_token_ids
        allowed = params.allowed_token_ids
        self._allowed = None if allowed is None else _bits(allowed, vocab_size)
        self._stage = _Stage.ANSWER
        if thinking is not None:
            self._stage = _Stage.OPENING
            if thinking.opened:
                self._open(thinking)

    @property
    def num_free(self) -> int:
        """So many of the next tokens may be any, whichever those before them are."""
        if self._matcher is not None or self._stage is _Stage.CLOSING:
            return 0
        budget = None if self._thinking is None else self._thinking.budget
        if self._stage is _Stage.ANSWER or budget is None:
            return NO_LIMIT
        return budget - self._num_thoughts + (self._stage is _Stage.OPENING)

    @property
    def asked_matcher(self) -> LLMatcher | None:
        """The matcher whose mask `restrict` needs; None where it needs none."""
        return self._matcher if self._stage in (_Stage.OPENING, _Stage.ANSWER) else None

    @property
    def checks_guesses(self) -> bool:
        """Whether `right_guesses` tells which can come, and `restrict` masks what follows them."""
        return self._matcher is not None and self._stage is _Stage.ANSWER

    def right_guesses(self, token_ids: list[int]) -> list[int]:
        """The guesses up to the first that cannot come, as far as that can be checked."""
        if self._matcher is None:
            return token_ids
        return token_ids[: self._matcher.validate_tokens(token_ids)]

    def accept(self, token_id: int) -> None:
        """Go on by the token that was generated."""
        self._num_generated += 1
        thinking = self._thinking
        if self._stage is _Stage.CLOSING:
            self._forced.popleft()
            if not self._forced:
                self._stage = _Stage.ANSWER
        elif self._stage is _Stage.OPENING and thinking and token_id == thinking.start_id:
            self._open(thinking)
        elif self._stage is _Stage.THINKING and thinking:
            self._think(thinking, token_id)
        else:
            self._stage = _Stage.ANSWER
            is_end = token_id in self._end_ids and self._num_generated > self._min_tokens
            if self._matcher is not None and not is_end:
                self._matcher.consume_token(token_id)

    def restrict(self, bits: Bits, ahead: int = 0) -> None:
        """Set the bits of the ids that may come next, and no others.

        Args:
            bits: [mask_words(vocab_size)]; the mask of the `asked_matcher`, if there is one.
            ahead: so many guesses come first, for which the matcher's mask is.
        """
        thinking = self._thinking
        is_late = self._num_generated + ahead < self._min_tokens
        if self._stage is _Stage.CLOSING:
            bits[:] = 0
            _set(bits, self._forced[0])
        elif self._stage is _Stage.THINKING:
            bits[:] = _ALL
            for token_id in self._end_ids:
                _clear(bits, token_id)
        elif self._matcher is not None:
            if self._matcher.is_error():
                bits[:] = 0
            elif _is_set(bits, self._vocab_size) and not is_late:
                for token_id in self._end_ids:
                    _set(bits, token_id)
            if self._stage is _Stage.OPENING and thinking:
                _set(bits, thinking.start_id)
        _clear(bits, self._vocab_size)
        for token_id in self._bad_ids:
            _clear(bits, token_id)
        if self._allowed is not None:
            bits &= self._allowed
        if is_late:
            others = bits & ~self._late
            # Where all that may come is held back, it comes, and does not end the text.
            if others.any():
                bits[:] = others

    @property
    def is_complete(self) -> bool:
        """The text may end here."""
        matcher = self.asked_matcher
        return matcher is not None and matcher.is_accepting() and not matcher.is_error()

    @property
    def problem(self) -> str:
        """What went wrong where `restrict` has left no id."""
        message = "" if self._matcher is None else error_of(self._matcher.get_error())
        return message or (
            "no token is left to generate: what the grammar or the end of thinking asks for is "
            "banned by allowed_token_ids or bad_token_ids, or the model has no token for it"
        )

    def _open(self, thinking: Thinking) -> None:
        self._stage = _Stage.THINKING
        self._check_budget(thinking)

    def _think(self, thinking: Thinking, token_id: int) -> None:
        if token_id != thinking.end_id:
            self._num_thoughts += 1
            self._check_budget(thinking)
            return
        self._stage = _Stage.ANSWER
        if self._matcher is not None:
            behind = thinking.close_ids.index(thinking.end_id) + 1
            self._force(thinking.close_ids[behind:])

    def _check_budget(self, thinking: Thinking) -> None:
        if thinking.budget is not None and self._num_thoughts >= thinking.budget:
            self._force(thinking.close_ids)

    def _force(self, token_ids: Collection[int]) -> None:
        if token_ids:
            self._forced.extend(token_ids)
            self._stage = _Stage.CLOSING


def _bits(token_ids: Collection[int], vocab_size: int) -> Bits:
    bits: Bits = np.zeros(mask_words(vocab_size), dtype=np.uint32)
    for token_id in token_ids:
        _set(bits, token_id)
    return bits


def _set(bits: Bits, token_id: int) -> None:
    bits[token_id >> 5] |= np.uint32(1 << (token_id & 31))


def _clear(bits: Bits, token_id: int) -> None:
    bits[token_id >> 5] &= ~np.uint32(1 << (token_id & 31))


def _is_set(bits: Bits, token_id: int) -> bool:
    return bool(bits[token_id >> 5] >> np.uint32(token_id & 31) & np.uint32(1))
