"""Weights as the native linear reads them: packed once, for every instruction set alike.

Sixteen rows make a panel, and panels follow one another; rows past N are zero. Within a panel the
columns ascend:

    f32, f16   [K][16]
    bf16       [K / 2][16][2], an odd K padded with zeros: a word holds two columns of a row
    int8       for each 32 columns, 16 float16 scales, then [8][16][4] codes: a word holds four
               columns of a row. W = scale * (code - 128), codes 1 .. 255
    int4       for each 32 columns, 16 float16 scales, then [4][16][4] bytes: byte j of line i holds
               column 4 i + j in its low half and 16 + 4 i + j in its high half.
               W = scale * (code - 8), codes 0 .. 15

Integers and scales are those of kernels/quantize.py. K is a multiple of 32 where there are scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qwell.kernels.errors import KernelError

Format = Literal["f32", "bf16", "f16", "int8", "int4"]

PANEL_ROWS = 16
GROUP = 32

ALIGNMENT = 64
"""Of packed data in memory, in bytes: a line of codes is a line of the cache."""


def packed_bytes(format_name: Format, rows: int, columns: int) -> int:
    """Bytes of a packed weight [rows, columns]."""
    scales = columns // GROUP * 2
    per_row = {
        "f32": columns * 4,
        "bf16": -(-columns // 2) * 4,
        "f16": columns * 2,
        "int8": columns + scales,
        "int4": columns // 2 + scales,
    }[format_name]
    return -(-rows // PANEL_ROWS) * PANEL_ROWS * per_row


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight [N = rows, K = columns] in the layout said above.

    Attributes:
        data: uint8, one dimension, `packed_bytes` long, aligned to ALIGNMENT bytes.
    """

    format: Format
    data: Tensor
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.format in ("int8", "int4") and (self.columns == 0 or self.columns % GROUP):
            raise KernelError(
                f"PackedWeight: {self.format} takes columns in groups of {GROUP}, "
                f"got {self.columns}"
            )
        size = packed_bytes(self.format, self.rows, self.columns)
        if self.data.shape != (size,) or self.data.dtype != torch.uint8:
            raise KernelError(
                f"PackedWeight: data must be uint8 of shape ({size},), "
                f"got {self.data.dtype} of shape {tuple(self.data.shape)}"
            )
        if self.data.device.type != "cpu" or self.data.data_ptr() % ALIGNMENT:
            raise KernelError(f"PackedWeight: data must be on the CPU, aligned to {ALIGNMENT}")

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.rows, self.columns

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.data.device
