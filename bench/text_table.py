"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "-"
"""In place of what there is not."""


def aligned(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, after an empty one; nothing without rows."""
    if not rows:
        return []
    lines = [heading, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "",
        *(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ),
    ]
