"""Rows of adjust_logits, and what they are to become: the definition, id by id in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """`listed` maps ids to count and bias; the defaults change nothing."""

    listed: dict[int, tuple[int, float]] = field(default_factory=dict)
    newest: int = -1
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    only_listed: bool = False


def rows(vocabulary: int) -> st.SearchStrategy[Row]:
    ids = st.integers(0, vocabulary - 1)
    entry = st.tuples(st.integers(-1, 3), st.sampled_from((0.0, 1.5, -100.0, -np.inf)))
    return st.builds(
        Row,
        listed=st.dictionaries(ids, entry, max_size=8),
        newest=st.just(-1) | ids,
        repetition=st.sampled_from((1.0, 1.3, 0.7)),
        presence=st.sampled_from((0.0, 0.9, -2.0)),
        frequency=st.sampled_from((0.0, 0.3, -0.1)),
        only_listed=st.booleans(),
    )


def arguments(listed: list[Row]) -> dict[str, Tensor]:
    """Those of the op, but for the logits."""
    entries = [(i, *entry) for row in listed for i, entry in row.listed.items()]

    def column(values: list[float], dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    return {
        "ids": column([entry[0] for entry in entries]),
        "counts": column([entry[1] for entry in entries]),
        "biases": column([entry[2] for entry in entries], torch.float64),
        "cu_ids": column([0, *(len(row.listed) for row in listed)]).cumsum(0).int(),
        "newest": column([row.newest for row in listed]),
        "repetition_penalty": column([row.repetition for row in listed], torch.float64),
        "presence_penalty": column([row.presence for row in listed], torch.float64),
        "frequency_penalty": column([row.frequency for row in listed], torch.float64),
        "only_listed": column([row.only_listed for row in listed]),
    }


def expected(logits: np.ndarray, row: Row) -> list[float]:
    """The row's logits, rounded to fp32 in every step."""
    out = []
    for token_id, logit in enumerate(logits):
        listed = token_id in row.listed
        count, bias = row.listed.get(token_id, (-1, 0.0))
        if token_id == row.newest:
            count = max(count, 0) + 1
        value = np.float32(logit)
        if count >= 0:
            penalty = np.float32(row.repetition)
            value = value / penalty if value >= 0 else value * penalty
        if count > 0:
            value = value - np.float32(row.frequency) * np.float32(count)
            value = value - np.float32(row.presence)
        value = value + np.float32(bias)
        out.append(-np.inf if row.only_listed and not listed else value)
    return out
