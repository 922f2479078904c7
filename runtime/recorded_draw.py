"""The draw of next ids recorded once and replayed on CPUs: one call a step, without tensors.

In a step the caches are full of weights, and every call into torch waits for its code: a draw that
builds tensors takes longer than the native draw itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qwell.kernels.ops import Sample
from qwell.runtime.logit_adjustment import Floats, Ints

if TYPE_CHECKING:  # a checkout that is not built runs on GPUs
    from qwell.kernels.native.runner import Replay, Runner


class RecordedDraw:
    """Draws from the logits of a recorded forward pass."""

    def __init__(self, sample: Sample, runner: Runner, forward: Replay) -> None:
        """Record a draw; nothing is computed.

        Args:
            sample: the op, one of the runner's.
            runner: where it goes.
            forward: computes the logits, fp32 [most rows, V].
        """
        logits = forward.result
        rows = len(logits)
        self._forward = forward
        # Greedy, until told otherwise.
        self._parameters: dict[str, Ints | Floats] = {
            "temperature": np.zeros(rows),
            "top_k": np.zeros(rows, dtype=np.int32),
            "top_p": np.ones(rows),
            "min_p": np.zeros(rows),
            "typical_p": np.ones(rows),
            "uniform": np.zeros(rows),
        }
        self._is_greedy = True
        tensors = {name: torch.from_numpy(column) for name, column in self._parameters.items()}
        self._replay = runner.record(lambda: sample(logits, **tensors), logits, logits)
        self._ids: Ints = self._replay.result.numpy()

    def serves(self, logits: Tensor, rows: int) -> bool:
        """Whether these are the so many rows that the forward pass has just computed."""
        return logits is self._forward.first(rows)

    def run(self, rows: int, parameters: Mapping[str, Sequence[float]] | None) -> list[int]:
        """Next ids of the first rows.

        Args:
            rows: how many.
            parameters: those of the op, each [rows]; None where all rows are greedy.
        """
        if parameters is not None:
            for name, values in parameters.items():
                self._parameters[name][:rows] = values
            self._is_greedy = False
        elif not self._is_greedy:
            self._parameters["temperature"].fill(0.0)
            self._is_greedy = True
        self._replay(rows, rows)
        ids: list[int] = self._ids[:rows].tolist()
        return ids
