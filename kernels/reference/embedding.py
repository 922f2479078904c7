"""embedding: rows of a table."""

from torch import Tensor

from qwell.kernels.native.packed import PackedWeight


def embedding(ids: Tensor, table: Tensor | PackedWeight) -> Tensor:
    """Rows of table [V, d] for ids [T] -> [T, d]; of a packed table exact in float32."""
    if isinstance(table, PackedWeight):
        return table.dequantize_rows(ids)
    return table[ids]
