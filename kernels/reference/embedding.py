"""embedding: rows of a table."""

from torch import Tensor


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of table [V, d] for ids [T] -> [T, d]."""
    return table[ids]
