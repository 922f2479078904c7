"""sample: penalties, truncation and the draw of the next ids."""

import torch
from torch import Tensor


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition_penalty: Tensor,
    seen_ids: Tensor,
    cu_seen: Tensor,
    uniform: Tensor,
) -> Tensor:
    """Next ids [S] from fp32 logits [S, V]; the order of steps is the op's contract."""
    bounds = cu_seen.tolist()
    # The parameters are read to the host once: a row is a handful of torch calls.
    rows = zip(
        temperature.tolist(),
        top_k.tolist(),
        top_p.tolist(),
        min_p.tolist(),
        repetition_penalty.tolist(),
        uniform.tolist(),
        strict=True,
    )
    ids = []
    for s, (heat, k, p, floor, penalty, u) in enumerate(rows):
        row = logits[s]
        if penalty != 1.0:
            row = _penalise(row, seen_ids[bounds[s] : bounds[s + 1]].long(), penalty)
        ids.append(row.argmax() if heat == 0.0 else _draw(row.double() / heat, k, p, floor, u))
    return torch.stack(ids).to(torch.int32)


def _penalise(row: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the seen ids less likely (CTRL, arXiv 1909.05858)."""
    logit = row[seen]
    return row.scatter(0, seen, torch.where(logit >= 0, logit / penalty, logit * penalty))


def _draw(row: Tensor, k: int, p: float, floor: float, u: float) -> Tensor:
    """One id from fp64 logits [V] cut to top-k, top-p, min-p, by inverse of the cdf at u."""
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
    cumulative = weights.cumsum(0)
    # u < 1 times the total can round up to the total: the last kept id is then the answer.
    index = torch.searchsorted(cumulative, u * cumulative[-1], right=True)
    return kept[index.clamp(max=kept.numel() - 1)]
