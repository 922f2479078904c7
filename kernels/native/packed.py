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

Integers and scales are those of kernels/int_groups.py, the rows past N those of zeros. K is a
multiple of 32 where there are scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.int_groups import GROUP, round_int4, round_int8

Format = Literal["f32", "bf16", "f16", "int8", "int4"]

PANEL_ROWS = 16

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

    def dequantize(self) -> Tensor:
        """W in float32 [N, K], exact."""
        return self.dequantize_rows(torch.arange(self.rows))

    def dequantize_rows(self, ids: Tensor) -> Tensor:
        """The rows ids [T] of W in float32 [T, K]."""
        panel, row = ids // PANEL_ROWS, ids % PANEL_ROWS
        panels = self.data.view(-(-self.rows // PANEL_ROWS), -1)
        if self.format == "bf16":
            pairs: Tensor = panels.view(torch.bfloat16).unflatten(1, (-1, PANEL_ROWS, 2))
            return pairs[panel, :, row].flatten(1)[:, : self.columns].float()
        if self.format in ("f32", "f16"):
            dtype = torch.float32 if self.format == "f32" else torch.float16
            values: Tensor = panels.view(dtype).unflatten(1, (-1, PANEL_ROWS))
            return values[panel, :, row].float()
        groups: Tensor = panels.unflatten(1, (self.columns // GROUP, -1))
        scales = groups[..., :_SCALE_BYTES].view(torch.float16)[panel, :, row]
        lines: Tensor = groups[..., _SCALE_BYTES:].unflatten(-1, (-1, PANEL_ROWS, 4))
        codes = lines[panel, :, :, row].flatten(2)
        if self.format == "int4":
            codes = torch.cat((codes & 15, codes >> 4), dim=-1)
        zero = 8 if self.format == "int4" else 128
        return ((codes.float() - zero) * scales[..., None].float()).flatten(1)


_SCALE_BYTES = PANEL_ROWS * 2


def pack(weight: Tensor, format_name: Format) -> PackedWeight:
    """A float weight [N, K] as a PackedWeight; each value is rounded once, to the format's nearest.

    Raises KernelError if the format has groups and K is not a multiple of 32, or if a weight is
    not finite or too large for the format; one that is stored as it is may be anything.
    """
    rows, columns = weight.shape
    padded = F.pad(weight, (0, 0, 0, -rows % PANEL_ROWS))
    if format_name in ("int8", "int4"):
        packed = _pack_groups(padded, format_name)
    elif format_name == "bf16":
        pairs = F.pad(padded.bfloat16(), (0, columns % 2)).unflatten(1, (-1, 2))
        packed = pairs.unflatten(0, (-1, PANEL_ROWS)).transpose(1, 2)
    else:
        values = padded.float() if format_name == "f32" else _to_float16(padded)
        packed = values.unflatten(0, (-1, PANEL_ROWS)).transpose(1, 2)
    return PackedWeight(format_name, packed.contiguous().flatten().view(torch.uint8), rows, columns)


def _to_float16(weight: Tensor) -> Tensor:
    narrow: Tensor = weight.half()
    if weight.dtype != torch.float16 and not narrow.isfinite().all():
        raise KernelError("pack: weights are not finite, or too large for float16")
    return narrow


def _pack_groups(weight: Tensor, format_name: Format) -> Tensor:
    """[P, K / 32, bytes of a group of a panel]."""
    integers, scales = (round_int8 if format_name == "int8" else round_int4)(weight)
    codes = (integers + (128 if format_name == "int8" else 8)).to(torch.uint8)
    if format_name == "int4":
        low, high = codes.chunk(2, dim=-1)
        codes = low | high << 4
    lines = codes.unflatten(-1, (-1, 4)).unflatten(0, (-1, PANEL_ROWS)).permute(0, 2, 3, 1, 4)
    panel_scales = scales.unflatten(0, (-1, PANEL_ROWS)).transpose(1, 2).contiguous()
    return torch.cat((panel_scales.view(torch.uint8), lines.flatten(2)), dim=-1)
