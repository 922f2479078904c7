"""adjust_logits: penalties, biases and bans of single ids."""

import torch
from torch import Tensor


def adjust_logits(
    logits: Tensor,
    ids: Tensor,
    counts: Tensor,
    biases: Tensor,
    cu_ids: Tensor,
    newest: Tensor,
    repetition_penalty: Tensor,
    presence_penalty: Tensor,
    frequency_penalty: Tensor,
    only_listed: Tensor,
) -> None:
    """Adjust fp32 logits [S, V] in place; the order of steps is the op's contract."""
    bounds = cu_ids.tolist()
    for s, row in enumerate(logits):
        listed = slice(bounds[s], bounds[s + 1])
        row_ids, row_counts, row_biases = ids[listed], counts[listed], biases[listed].float()
        if newest[s] >= 0:
            again = row_ids == newest[s]
            row_counts = torch.where(again, row_counts.clamp(min=0) + 1, row_counts)
            if not again.any() and not only_listed[s]:
                row_ids = torch.cat((row_ids, newest[s : s + 1]))
                row_counts = torch.cat((row_counts, torch.ones_like(newest[s : s + 1])))
                row_biases = torch.cat((row_biases, row.new_zeros(1)))
        values = row[row_ids.long()]
        penalty = repetition_penalty[s].float()
        repeated = torch.where(values >= 0, values / penalty, values * penalty)
        values = torch.where(row_counts >= 0, repeated, values)
        less = values - frequency_penalty[s].float() * row_counts - presence_penalty[s].float()
        values = torch.where(row_counts > 0, less, values) + row_biases
        if only_listed[s]:
            row.fill_(-torch.inf)
        row[row_ids.long()] = values
