"""How far one model's predictions are from another's, over the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import torch
from torch import Tensor

_ROWS = 32
"""Positions computed at a time: in float64, a row of a large vocabulary has a megabyte."""


class Positions(msgspec.Struct, frozen=True):
    """What was found at each of P positions.

    Attributes:
        divergence: KL(reference || model) in nats, float64 [P].
        agrees: whether both have the same most probable token, bool [P].
        loss: -log p of the token that came, float64 [P].
        reference_loss: the same of the reference.
    """

    divergence: Tensor
    agrees: Tensor
    loss: Tensor
    reference_loss: Tensor


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """A model beside its reference.

    Attributes:
        positions: that were compared.
        mean_divergence: of KL(reference || model), in nats.
        mean_divergence_error: standard error of that mean.
        median_divergence, p99_divergence: half, 99 % of the positions have at most this.
        top1_agreement: share of positions with the same most probable token.
        perplexity: of the model on the text.
        perplexity_ratio: to the reference's.
    """

    positions: int
    mean_divergence: float
    mean_divergence_error: float
    median_divergence: float
    p99_divergence: float
    top1_agreement: float
    perplexity: float
    perplexity_ratio: float


def compare(reference: Tensor, logits: Tensor, next_ids: Tensor) -> Positions:
    """Compare two models' logits of the same positions.

    Args:
        reference, logits: float32 [P, V].
        next_ids: the token that came after each position, int64 [P].
    """
    rows = [
        _compare(*piece)
        for piece in zip(
            reference.split(_ROWS), logits.split(_ROWS), next_ids.split(_ROWS), strict=True
        )
    ]
    return join(rows)


def join(pieces: Iterable[Positions]) -> Positions:
    """All positions of several pieces of text."""
    columns = zip(*(msgspec.structs.astuple(piece) for piece in pieces), strict=True)
    return Positions(*(torch.cat(column) for column in columns))


def summary(found: Positions) -> Quality:
    """Figures of at least one position."""
    divergence = found.divergence
    count = len(divergence)
    deviation = divergence.std(correction=0).item()
    loss = found.loss.mean().item()
    return Quality(
        positions=count,
        mean_divergence=divergence.mean().item(),
        mean_divergence_error=deviation / math.sqrt(count),
        median_divergence=divergence.quantile(0.5).item(),
        p99_divergence=divergence.quantile(0.99).item(),
        top1_agreement=found.agrees.double().mean().item(),
        perplexity=math.exp(loss),
        perplexity_ratio=math.exp(loss - found.reference_loss.mean().item()),
    )


def _compare(reference: Tensor, logits: Tensor, next_ids: Tensor) -> Positions:
    # In float64: the divergence of good formats is a small difference of large terms.
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    # Where p is 0 so is the term, whatever q is.
    terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q))
    return Positions(
        terms.sum(-1),
        reference.argmax(-1) == logits.argmax(-1),
        -q.gather(-1, next_ids[:, None])[:, 0],
        -p.gather(-1, next_ids[:, None])[:, 0],
    )
