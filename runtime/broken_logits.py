"""Logits that are no numbers: no draw from them says anything, though an id would come of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from qwell.runtime.transfer import to_host_array

WHY = (
    "the model's logits are not numbers (NaN): its weights are damaged, or what it computes "
    "overflows float16, if that is the dtype of activations or of the KV cache"
)


def broken_rows(logits: Tensor) -> Callable[[], frozenset[int]]:
    """Which rows of a step's fp32 logits [R, V] are NaN; what is returned waits for the step.

    The first logit stands for its row: a NaN or an infinity on a token's way through the model
    makes all of its logits NaN.
    """
    first = logits[:, 0]
    if logits.device.type == "cpu":
        # A call into torch would take ten times as long.
        found = frozenset(np.flatnonzero(np.isnan(first.numpy())).tolist())
        return lambda: found
    wait = to_host_array(first)
    return lambda: frozenset(np.flatnonzero(np.isnan(wait())).tolist())
