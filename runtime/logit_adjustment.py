"""What penalties, biases and bans of one sequence do to its next logits, kept up to date."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from qwell.runtime.sampling_params import SamplingParams

_UNSEEN = -1

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


class LogitAdjustment:
    """The ids of one sequence that the op adjust_logits is to list, with their counts and biases.

    A token costs the same however many there are already.

    Attributes:
        counts_tokens: whether generated tokens matter to it.
        only_listed: whether all other ids are banned.
    """

    def __init__(
        self,
        params: SamplingParams,
        token_ids: Sequence[int],
        num_prompt_tokens: int,
        late_ids: Collection[int],
    ) -> None:
        """Of a sequence with these tokens; `late_ids` can be held back."""
        penalised = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self.counts_tokens = penalised or params.repetition_penalty != 1.0
        self.only_listed = params.allowed_token_ids is not None
        self._places: dict[int, int] = {}
        # Parallel to the places; the rest is room to grow.
        self._ids: Ints = np.empty(16, dtype=np.int32)
        self._counts: Ints = np.full(16, _UNSEEN, dtype=np.int32)
        self._biases: Floats = np.zeros(16)
        for token_id in params.allowed_token_ids or ():
            self._place(token_id)
        for token_id, bias in params.logit_bias.items():
            self._bias(token_id, bias)
        for token_id in params.bad_token_ids:
            self._bias(token_id, -math.inf)
        self._lasts = bool(self._places) or self.counts_tokens
        self._late_places = [self._place(i) for i in late_ids if self._lists(i)]
        if params.repetition_penalty != 1.0:
            for token_id in dict.fromkeys(token_ids[:num_prompt_tokens]):
                self._count(token_id, 0)
        for token_id in token_ids[num_prompt_tokens:]:
            self.generated(token_id)

    def acts(self, *, holds_back: bool) -> bool:
        """Whether it changes any logit of the next token."""
        return self._lasts or (holds_back and bool(self._late_places))

    def generated(self, token_id: int) -> None:
        """Count a token."""
        if self.counts_tokens:
            self._count(token_id, 1)

    def listed(self, *, holds_back: bool) -> tuple[Ints, Ints, Floats]:
        """Ids [n], counts and biases for the next token; to be read before the next `generated`."""
        size = len(self._places)
        biases = self._biases[:size]
        if holds_back:
            biases = biases.copy()
            biases[self._late_places] = -math.inf
        return self._ids[:size], self._counts[:size], biases

    def _lists(self, token_id: int) -> bool:
        """Whether an id may be listed: others are banned as it is, and listing would allow them."""
        return not self.only_listed or token_id in self._places

    def _count(self, token_id: int, more: int) -> None:
        if self._lists(token_id):
            place = self._place(token_id)
            self._counts[place] = max(int(self._counts[place]), 0) + more

    def _bias(self, token_id: int, bias: float) -> None:
        if self._lists(token_id):
            # First: it may put a longer array in the place of `_biases`.
            place = self._place(token_id)
            self._biases[place] += bias

    def _place(self, token_id: int) -> int:
        """Where an id is listed; it is put at the end if it is not yet."""
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.full_like(self._counts, _UNSEEN)))
            self._biases = np.concatenate((self._biases, np.zeros_like(self._biases)))
        self._ids[place] = token_id
        return place


def adjustment_of(
    params: SamplingParams,
    token_ids: Sequence[int],
    num_prompt_tokens: int,
    late_ids: Collection[int],
) -> LogitAdjustment | None:
    """That of a sequence with these tokens, or None where its parameters ask for none."""
    adjustment = LogitAdjustment(params, token_ids, num_prompt_tokens, late_ids)
    return adjustment if adjustment.acts(holds_back=params.min_tokens > 0) else None
