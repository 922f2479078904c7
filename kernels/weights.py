"""Formats of linear weights beside plain tensors, and the layout of their codes.

PackedWeight, for CPUs, is native/packed.py's. In the others four codes make a word, int16 for
codes of 4 bits and int32 for 8, and words are [ceil(K / 128), N, 32]: place j (bits j * bits and
up) of word r of tile t holds column 128 t + 32 j + r. The words of a tile of rows are consecutive
in memory, and the codes in one place of a row's words are 32 consecutive columns. Columns past K
are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.native.packed import PackedWeight

RUN = 32
"""Consecutive columns in one place of a row's words; groups of columns are multiples of it."""

PLACES = 4
"""Codes in a word."""

BLOCK = 128
"""Side of the square blocks that have a scale each in Fp8Weight."""

WORD_DTYPES = {4: torch.int16, 8: torch.int32}
"""Bits of a code -> dtype of its words."""


@dataclass(frozen=True, eq=False)
class IntWeight:
    """Integers with a scale, and perhaps a zero point, for each group of columns of a row.

    W[n, k] = scales[g, n] * (code[n, k] - zeros[g, n]), g = k // group: the groups of GPTQ (arXiv
    2210.17323; group 128), AWQ (arXiv 2306.00978; group 128) and of quantize.py (group 32).

    Attributes:
        words: [ceil(K / 128), N, 32], codes 0 .. 2^bits - 1 packed as said above.
        scales: float16 [K / group, N]; the order of GPTQ and AWQ files.
        zeros: uint8 [K / group, N], or None where every zero point is 2^(bits - 1).
        bits: 4 or 8.
        columns: K, a multiple of the group, which is a multiple of 32.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    columns: int

    def __post_init__(self) -> None:
        if self.bits not in WORD_DTYPES:
            raise KernelError(f"IntWeight: bits must be 4 or 8, got {self.bits}")
        _check_words("IntWeight", self.words, self.bits, self.columns)
        groups = self.scales.shape[0]
        if groups == 0 or self.columns % (groups * RUN):
            raise KernelError(
                f"IntWeight: {self.columns} columns are not {groups} groups of a multiple of {RUN}"
            )
        _check("IntWeight", "scales", self.scales, torch.float16, (groups, self.words.shape[1]))
        if self.zeros is not None:
            _check("IntWeight", "zeros", self.zeros, torch.uint8, tuple(self.scales.shape))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.words.shape[1], self.columns

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.words.device

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.scales.shape[0]

    def dequantize(self) -> Tensor:
        """W in float32 [N, K]; exact, because codes have 8 bits and scales 11."""
        codes = unpack(self.words, self.bits, self.columns).float()
        zeros = 2 ** (self.bits - 1) if self.zeros is None else self._spread(self.zeros)
        return (codes - zeros) * self._spread(self.scales)

    def _spread(self, per_group: Tensor) -> Tensor:
        return per_group.float().t().repeat_interleave(self.group, dim=1)


@dataclass(frozen=True, eq=False)
class Fp8Weight:
    """float8_e4m3fn with a scale for each block of [128, 128].

    W[n, k] = scales[n // 128, k // 128] * code[n, k]: the `weight_scale_inv` of DeepSeek-V3's and
    Qwen's FP8 checkpoints (arXiv 2412.19437), a multiplier in spite of its name. Activations are
    not quantised: they meet W in the model dtype. Codes are finite.

    Attributes:
        words: int32 [ceil(K / 128), N, 32], bit patterns of the codes packed as said above.
        scales: float32 [ceil(N / 128), ceil(K / 128)].
        columns: K.
    """

    words: Tensor
    scales: Tensor
    columns: int

    def __post_init__(self) -> None:
        _check_words("Fp8Weight", self.words, 8, self.columns)
        blocks = (-(-self.words.shape[1] // BLOCK), -(-self.columns // BLOCK))
        _check("Fp8Weight", "scales", self.scales, torch.float32, blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.words.shape[1], self.columns

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.words.device

    def dequantize(self) -> Tensor:
        """W in float32 [N, K]."""
        rows, columns = self.shape
        codes = unpack(self.words, 8, columns).view(torch.float8_e4m3fn).float()
        scales = self.scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return codes * scales[:rows, :columns]


Weight: TypeAlias = Tensor | IntWeight | Fp8Weight | PackedWeight


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [N, K] of 4 or 8 bits -> words [ceil(K / 128), N, 32]."""
    padded = F.pad(codes, (0, -codes.shape[1] % (PLACES * RUN))).to(torch.int64)
    runs = padded.view(codes.shape[0], -1, PLACES, RUN)
    words = (runs << _shifts(bits, codes.device)).sum(dim=2)
    return words.to(WORD_DTYPES[bits]).transpose(0, 1).contiguous()


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of pack: words [ceil(K / 128), N, 32] -> codes uint8 [N, K = columns]."""
    runs = words.transpose(0, 1)[:, :, None, :].to(torch.int32)
    codes: Tensor = (runs >> _shifts(bits, words.device)) & (2**bits - 1)
    return codes.to(torch.uint8).flatten(1)[:, :columns].contiguous()


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, PLACES * bits, bits, device=device, dtype=torch.int32)[:, None]


def _check_words(format_name: str, words: Tensor, bits: int, columns: int) -> None:
    if words.dim() != 3:
        raise KernelError(f"{format_name}: words must have 3 dimensions, got {words.dim()}")
    tiles = -(-columns // (PLACES * RUN))
    _check(format_name, "words", words, WORD_DTYPES[bits], (tiles, words.shape[1], RUN))


def _check(
    format_name: str, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        raise KernelError(
            f"{format_name}: {name} must be contiguous {dtype} of shape {shape}, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}, strides {tensor.stride()}"
        )
