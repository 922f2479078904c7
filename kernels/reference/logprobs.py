"""logprobs: log-probabilities of given ids and of the most likely ones."""

import torch
from torch import Tensor


def logprobs(logits: Tensor, ids: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of ids [S], and the `top` most likely ids, under fp32 logits [S, V]."""
    given = logits.new_empty(len(logits))
    top_ids = ids.new_empty(len(logits), top)
    top_logprobs = logits.new_empty(len(logits), top)
    # Row by row: float64 for all of [S, V] could be gigabytes.
    for s, row in enumerate(logits):
        every = row.double().log_softmax(dim=0)
        likely = _most_likely(row, top)
        given[s] = every[ids[s]]
        top_ids[s] = likely
        top_logprobs[s] = every[likely]
    return given, top_ids, top_logprobs


def _most_likely(row: Tensor, top: int) -> Tensor:
    """Ids of the `top` highest logits [V], highest first; of equal ones the lower id first."""
    if top == 0:
        return torch.empty(0, dtype=torch.int64, device=row.device)
    # A stable sort of the whole row would do as well, in many times the time.
    kept = (row >= row.topk(top).values[-1]).nonzero().squeeze(1)
    return kept[row[kept].sort(descending=True, stable=True).indices[:top]]
