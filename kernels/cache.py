"""The keys or the values of a layer in the paged cache: a tensor, or integers with scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

SCALE_BYTES = 4
"""Of the scale that a token's key or value has for each head in an Int8Cache."""


@dataclass(frozen=True, eq=False)
class Int8Cache:
    """Keys or values as integers: element d of a head of a token is scale * value[d].

    Attributes:
        values: int8 [num_blocks, Hkv, block_size, D].
        scales: float32 [num_blocks, Hkv, block_size].
    """

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """[num_blocks, Hkv, block_size, D]."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Of integers and scales."""
        return self.values.nbytes + self.scales.nbytes

    @property
    def dtype(self) -> torch.dtype:
        """int8."""
        return self.values.dtype


Cache: TypeAlias = Tensor | Int8Cache


def quantize_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] as an Int8Cache keeps it: (values int8 [..., D], scales float32 [...]).

    The scale is max |x| / 127 and a value x / scale, in fp32, to the nearest integer, ties to
    even, and no further from 0 than 127 (a subnormal scale is that coarse). Zeros have the scale 0.
    A vector with an infinity or a NaN has the scale NaN, and so is NaN as a whole.
    """
    x = x.float()
    scales = x.abs().amax(dim=-1) / 127
    scales = scales.where(x.isfinite().all(dim=-1), torch.nan)
    scale = scales.unsqueeze(-1)
    values = (x / scale).clamp(-127, 127).round().where(scale > 0, 0.0)
    return values.to(torch.int8), scales
