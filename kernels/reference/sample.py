"""sample: truncation and the draw of the next ids."""

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    typical_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Next ids [S] from fp32 logits [S, V]; the order of steps is the op's contract."""
    # The parameters are read to the host once: a row is a handful of torch calls.
    rows = zip(
        logits,
        temperature.tolist(),
        top_k.tolist(),
        top_p.tolist(),
        min_p.tolist(),
        typical_p.tolist(),
        uniform.tolist(),
        strict=True,
    )
    ids = [
        row.argmax() if heat == 0.0 else _draw(row.double() / heat, k, p, floor, typical, u)
        for row, heat, k, p, floor, typical, u in rows
    ]
    return torch.stack(ids).to(torch.int32)


def _draw(row: Tensor, k: int, p: float, floor: float, typical: float, u: float) -> Tensor:
    """One id from fp64 logits [V], cut in this order, by inverse of the cdf at u."""
    kept = torch.arange(row.numel(), device=row.device)
    if 0 < k < row.numel():
        kept = (row >= row.topk(k).values[-1]).nonzero().squeeze(1)
    weights = row[kept].softmax(dim=0)
    if p < 1.0:
        ordered, order = weights.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        keep = before < p
        keep[0] = True
        inside = order[keep].sort().values
        kept, weights = kept[inside], weights[inside]
    if floor > 0.0:
        likely = weights >= floor * weights.max()
        kept, weights = kept[likely], weights[likely]
    if typical < 1.0:
        usual = _typical(row[kept], typical)
        kept, weights = kept[usual], weights[usual]
    cumulative = weights.cumsum(0)
    # u < 1 times the total can round up to the total: the last kept id is then the answer.
    index = torch.searchsorted(cumulative, u * cumulative[-1], right=True)
    return kept[index.clamp(max=kept.numel() - 1)]


def _typical(logits: Tensor, share: float) -> Tensor:
    """Which of fp64 logits [n] are the nearest to their entropy that reach `share` together."""
    log_probabilities = logits.log_softmax(dim=0)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).nansum()
    distance = (log_probabilities + entropy).abs().float()
    nearest = distance.argsort(stable=True)
    short = (probabilities[nearest].cumsum(0) < share).sum()
    return distance <= distance[nearest[short.clamp(max=len(nearest) - 1)]]
