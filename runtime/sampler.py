"""From logits to next ids: gathers the parameters of a step's sequences and draws."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qwell.kernels.ops import Ops
from qwell.runtime.logit_adjustment import Floats, Ints
from qwell.runtime.recorded_draw import RecordedDraw
from qwell.runtime.sampled_ids import IdColumn, SampledIds
from qwell.runtime.sequence import Sequence
from qwell.runtime.transfer import arrays_to_device

_MASK = 2**64 - 1
_NONE_LISTED = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0))


class Sampler:
    """Draws the next ids of a model's sequences."""

    def __init__(self, ops: Ops, recorded: RecordedDraw | None = None) -> None:
        """`recorded` draws from logits that it serves, the op from others."""
        self._ops = ops
        self._recorded = recorded

    def next_ids(
        self,
        logits: Tensor,
        sequences: SequenceOf[Sequence],
        places: SequenceOf[int] | None = None,
        sampled: SampledIds | None = None,
    ) -> Tensor | list[int]:
        """Next id of every sequence from fp32 logits [S, V]: int32 [S] on the device, or known.

        An id depends on its own row, parameters, seed and place in the sequence alone: not on
        the neighbours, nor on how the sequence was scheduled. Penalties, biases and bans change
        the logits in place.

        Args:
            logits: see above.
            sequences: of the rows; more than once where ids behind guesses are drawn.
            places: how many tokens of its sequence are generated before each id; None is all that
                are known or in flight.
            sampled: holds the ids in flight.
        """
        if not sequences:
            # On the device, where whoever waits for them waits for the step.
            return torch.empty(0, dtype=torch.int32, device=logits.device)
        if places is None:
            places = [sequence.num_generated for sequence in sequences]
        if any(sequence.adjustment is not None for sequence in sequences):
            _adjust(self._ops, logits, list(zip(sequences, places, strict=True)), sampled)
        is_greedy = all(sequence.params.temperature == 0.0 for sequence in sequences)
        parameters = None if is_greedy else _parameters(sequences, places)
        rows = len(sequences)
        if self._recorded is not None and self._recorded.serves(logits, rows):
            return self._recorded.run(rows, parameters)
        if parameters is None:
            return self._ops.sample(logits, **_greedy(rows, logits.device))
        columns: dict[str, Ints | Floats] = {
            name: np.array(values, dtype=np.float64) for name, values in parameters.items()
        }
        columns["top_k"] = np.array(parameters["top_k"], dtype=np.int32)
        return self._ops.sample(logits, **_on_device(columns, logits.device))


def _parameters(sequences: SequenceOf[Sequence], places: SequenceOf[int]) -> dict[str, list[float]]:
    """Those of the op sample, for each row."""
    params = [sequence.params for sequence in sequences]
    return {
        "temperature": [p.temperature for p in params],
        "top_k": [p.top_k for p in params],
        "top_p": [p.top_p for p in params],
        "min_p": [p.min_p for p in params],
        "typical_p": [p.typical_p for p in params],
        "uniform": [_draw(s, place) for s, place in zip(sequences, places, strict=True)],
    }


def _adjust(
    ops: Ops,
    logits: Tensor,
    rows_of: SequenceOf[tuple[Sequence, int]],
    sampled: SampledIds | None,
) -> None:
    """Penalise, bias and ban, in place."""
    if not any(
        s.adjustment is not None and s.adjustment.acts(holds_back=s.holds_back(place))
        for s, place in rows_of
    ):
        return
    newest = IdColumn(sampled)
    listed: list[tuple[Ints, Ints, Floats]] = []
    for sequence, place in rows_of:
        adjustment = sequence.adjustment
        if adjustment is None:
            listed.append(_NONE_LISTED)
        else:
            listed.append(adjustment.listed(holds_back=sequence.holds_back(place)))
        if adjustment is not None and adjustment.counts_tokens and sequence.num_in_flight:
            newest.append_in_flight(sequence)
        else:
            newest.extend((-1,))
    ids, counts, biases = (np.concatenate(columns) for columns in zip(*listed, strict=True))
    params = [sequence.params for sequence, _ in rows_of]
    penalties = np.array(
        [(p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params]
    )
    repetition, presence, frequency = np.ascontiguousarray(penalties.T)
    only_listed = [p.allowed_token_ids is not None for p in params]
    parameters = _on_device(
        {
            "ids": ids,
            "counts": counts,
            "biases": biases,
            "cu_ids": np.cumsum([0, *(len(row[0]) for row in listed)], dtype=np.int32),
            "newest": np.array(newest.ids, dtype=np.int32),
            "sources": np.array(newest.sources, dtype=np.int32),
            "repetition_penalty": repetition,
            "presence_penalty": presence,
            "frequency_penalty": frequency,
            "only_listed": np.array(only_listed, dtype=np.int32),
        },
        logits.device,
    )
    parameters["newest"] = newest.complete(parameters["newest"], parameters.pop("sources"))
    ops.adjust_logits(logits, **parameters)


def _on_device(arrays: Mapping[str, Ints | Floats], device: torch.device) -> dict[str, Tensor]:
    return dict(zip(arrays, arrays_to_device(list(arrays.values()), device), strict=True))


@lru_cache(maxsize=256)
def _greedy(rows: int, device: torch.device) -> dict[str, Tensor]:
    """Parameters of so many greedy rows: always the same, and so they stay on the device."""
    zeros = torch.zeros(rows, dtype=torch.float64, device=device)
    ones = torch.ones_like(zeros)
    return {
        "temperature": zeros,
        "top_k": torch.zeros(rows, dtype=torch.int32, device=device),
        "top_p": ones,
        "min_p": zeros,
        "typical_p": ones,
        "uniform": zeros,
    }


def _draw(sequence: Sequence, place: int) -> float:
    """Its random number for this place; greedy rows draw none."""
    return 0.0 if sequence.params.temperature == 0.0 else uniform(sequence.seed, place)


def uniform(seed: int, step: int) -> float:
    """The number in [0, 1) that draws generated token `step` of a sequence with this seed.

    Counter-based (Philox4x64-10, Salmon et al. 2011): there is no state to lose when a sequence
    is preempted or runs in another batch. It is the first number of numpy's
    Philox(key=seed, counter=[0, 0, 0, step]), which takes 150 us to set up in a decode step.
    """
    c0, c1, c2, c3 = 1, 0, 0, step
    k0, k1 = seed & _MASK, 0
    for _ in range(10):
        p0, p1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & _MASK, (p0 >> 64) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return (c0 >> 11) * 2.0**-53
