"""Comparisons that say where they are worst and how much of the tolerance was used."""

from __future__ import annotations

from torch import Tensor


def assert_close(got: Tensor, expected: Tensor, *, relative: float, what: str = "logits") -> float:
    """max |got - expected| <= relative x max|expected|, over logits [T, V].

    Returns the share of the tolerance that was used; prints it with the worst position.
    """
    assert got.shape == expected.shape, f"{what}: {got.shape} against {expected.shape}"
    got, expected = got.double(), expected.double()
    tolerance = relative * expected.abs().max().item()
    difference = (got - expected).abs()
    worst = int(difference.argmax())
    row, column = divmod(worst, got.shape[-1])
    largest = difference.flatten()[worst].item()
    used = largest / tolerance
    report = (
        f"{what}: worst at position {row}, id {column}: got {got.flatten()[worst]:.7g}, expected "
        f"{expected.flatten()[worst]:.7g}; {100 * used:.1f}% of the tolerance {tolerance:.3g} used"
    )
    print(report)
    # Written so that NaN fails: no comparison with NaN is true.
    assert largest <= tolerance, report
    return used


def mean_kl(expected: Tensor, got: Tensor) -> float:
    """Mean over positions of KL(softmax(expected) || softmax(got)), nats; logits [T, V]."""
    p, q = expected.double().log_softmax(-1), got.double().log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1)
    worst = int(divergence.argmax())
    print(f"mean KL {divergence.mean():.3g}, worst {divergence[worst]:.3g} at position {worst}")
    return divergence.mean().item()
