"""embedding: rows of a table."""

from torch import Tensor

from qwell.kernels.native.packed import PackedWeight
from qwell.kernels.weights import Weight


def embedding(ids: Tensor, table: Weight) -> Tensor:
    """Rows of table [V, d] for ids [T] -> [T, d]; of other tables than tensors in float32."""
    if isinstance(table, Tensor):
        return table[ids]
    if isinstance(table, PackedWeight):
        return table.dequantize_rows(ids)
    return table.dequantize()[ids]
