"""Log-probabilities that a step takes of its logits, on their way to the host.

They are those of the model: its logits through a softmax, before anything that sampling does.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qwell.kernels.ops import Ops
from qwell.runtime.messages import Logprobs
from qwell.runtime.sequence import Chunk, Sequence
from qwell.runtime.transfer import arrays_to_device, to_host_array

Scores = Callable[[], dict[Sequence, Logprobs]]
"""Waits for the step; the log-probabilities of each sequence that asked."""


def score_prompts(ops: Ops, logits: Tensor, chunks: SequenceOf[Chunk]) -> Scores:
    """Of the prompt tokens that follow those of the chunks, where they are asked for.

    Args:
        ops: the model's.
        logits: fp32 [R, V], as build_batch asks for them: a chunk that scores its prompt has a
            row for each token, others one if they complete their sequence.
        chunks: of the step.
    """
    waits: dict[Sequence, Callable[[], npt.NDArray[np.int32]]] = {}
    row = 0
    for chunk in chunks:
        sequence = chunk.sequence
        scored = chunk.scored
        if scored:
            top = min(sequence.params.prompt_logprobs or 0, logits.shape[1])
            ids = np.array(sequence.token_ids[scored.start : scored.stop], dtype=np.int32)
            [on_device] = arrays_to_device([ids], logits.device)
            # The logits of a token are of the one that follows it.
            first = row + scored.start - 1 - chunk.start
            waits[sequence] = _score(ops, logits[first : first + len(ids)], on_device, top)
            row += chunk.end - chunk.start
        else:
            row += chunk.num_drawn
    return lambda: {sequence: _logprobs(wait()) for sequence, wait in waits.items()}


def completing_rows(logits: Tensor, chunks: SequenceOf[Chunk]) -> Tensor:
    """Of the step's logits [R, V] the last rows of the chunks after which tokens are drawn."""
    if not any(chunk.scored for chunk in chunks):
        return logits
    counts = [chunk.end - chunk.start if chunk.scored else chunk.num_drawn for chunk in chunks]
    ends = np.cumsum(counts)
    rows = [
        row
        for end, chunk in zip(ends, chunks, strict=True)
        for row in range(end - chunk.num_drawn, end)
    ]
    [on_device] = arrays_to_device([np.array(rows, dtype=np.int32)], logits.device)
    return logits.index_select(0, on_device)


class SampledScores:
    """Those of the tokens that a step draws: made before the draw, which changes logits."""

    def __init__(self, logits: Tensor, sequences: SequenceOf[Sequence]) -> None:
        """Keep the rows of fp32 logits [S, V] whose sequences ask."""
        # A sequence that is to get no token draws one all the same.
        rows = [
            row
            for row, s in enumerate(sequences)
            if s.params.logprobs is not None and s.params.max_tokens > 0
        ]
        self._asking = [sequences[row] for row in rows]
        if rows:
            [self._rows] = arrays_to_device([np.array(rows, dtype=np.int32)], logits.device)
            self._logits = logits.index_select(0, self._rows)

    def of(self, ops: Ops, ids: Tensor | list[int]) -> Scores:
        """Of the drawn ids [S]."""
        asking = self._asking
        if not asking:
            return dict
        if isinstance(ids, list):
            ids = torch.tensor(ids, dtype=torch.int32)
        tops = [min(s.params.logprobs or 0, self._logits.shape[1]) for s in asking]
        wait = _score(ops, self._logits, ids.index_select(0, self._rows), max(tops))

        def scores() -> dict[Sequence, Logprobs]:
            rows = wait()
            return {s: _logprobs(rows[i : i + 1], tops[i]) for i, s in enumerate(asking)}

        return scores


def _score(ops: Ops, logits: Tensor, ids: Tensor, top: int) -> Callable[[], npt.NDArray[np.int32]]:
    """One copy to the host: int32 [n, 1 + 2 top], of which floats are the bits."""
    given, top_ids, top_given = ops.logprobs(logits, ids, top)
    columns = (given.unsqueeze(1).view(torch.int32), top_ids, top_given.view(torch.int32))
    return to_host_array(torch.cat(columns, dim=1))


def _logprobs(rows: npt.NDArray[np.int32], top: int | None = None) -> Logprobs:
    """Of rows as `_score` gives them; `top` of the most likely ids, or all that are there."""
    there = rows.shape[1] // 2
    top = there if top is None else top
    return Logprobs(
        chosen=rows[:, 0].tobytes(),
        top_ids=rows[:, 1 : 1 + top].tobytes(),
        top=rows[:, 1 + there : 1 + there + top].tobytes(),
    )
