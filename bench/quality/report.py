"""The comparison as text."""

from __future__ import annotations

from collections.abc import Sequence

from qwell.bench.quality.run import FormatQuality
from qwell.bench.text_table import aligned

HEADING = ("weights", "MB", "mean KL", "median KL", "99% KL", "same top 1", "perplexity", "ratio")


def table(reference: str, found: Sequence[FormatQuality]) -> str:
    """A line for each format."""
    positions = found[0].quality.positions
    lines = [
        f"KL(reference || format) in nats over {positions} positions; the reference is {reference}",
        *aligned(HEADING, [_cells(row) for row in found]),
    ]
    return "\n".join(lines)


def _cells(row: FormatQuality) -> tuple[str, ...]:
    q = row.quality
    return (
        row.weights,
        f"{row.weight_bytes / 1e6:.0f}",
        f"{q.mean_divergence:.6f} ± {q.mean_divergence_error:.6f}",
        f"{q.median_divergence:.6f}",
        f"{q.p99_divergence:.6f}",
        f"{q.top1_agreement:.2%}",
        f"{q.perplexity:.4f}",
        f"{q.perplexity_ratio:.5f}",
    )
