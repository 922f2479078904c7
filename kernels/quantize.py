"""Quantises weights as they are: no data, no search beyond a group's scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.weights import BLOCK, Fp8Weight, IntWeight, pack

GROUP = 32
"""Columns that share a scale in what this module makes."""

INT4_DIVISORS = (-8.0, -8.5, -9.0, -9.5, -7.5, -7.0, 7.0)
"""Candidate scales of a group are its largest weight divided by these: codes run from -8 to 7, so
that the sign which the largest weight takes matters, and clipping it helps the others."""

FP8_MAX = 448.0


def quantize_int8(weight: Tensor) -> IntWeight:
    """Symmetric 8-bit integers, scale max|w| / 127 of each 32 columns.

    weight [N, K]. Raises KernelError if K is not a multiple of 32 or a scale exceeds float16.
    """
    groups = _groups(weight)
    scales = _float16(groups.abs().amax(dim=-1) / 127)
    return _int_weight(_round(groups, scales, -127, 127), scales, bits=8)


def quantize_int4(weight: Tensor) -> IntWeight:
    """Integers -8 .. 7, the scale of each 32 columns being the candidate of least squared error.

    weight [N, K]. Raises KernelError if K is not a multiple of 32 or a scale exceeds float16.
    """
    groups = _groups(weight)
    largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))[..., 0]
    best_scales = _float16(largest / INT4_DIVISORS[0])
    best_error = torch.full_like(largest, torch.inf)
    for divisor in INT4_DIVISORS:
        scales = _float16(largest / divisor)
        values = _round(groups, scales, -8, 7) * scales[..., None].float()
        error = (values - groups).square().sum(dim=-1)
        best_scales = torch.where(error < best_error, scales, best_scales)
        best_error = torch.minimum(error, best_error)
    return _int_weight(_round(groups, best_scales, -8, 7), best_scales, bits=4)


def quantize_activations(x: Tensor) -> Tensor:
    """What the integer products of CPUs make of activations: float32 [T, K] -> [T, K].

    Integers -127 .. 127 times max|x| / 127 of each 32 columns of a row; groups below 2^-100 are
    zero, groups with an infinity or NaN are NaN.
    """
    groups = _groups(x)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    codes = torch.where(largest < 2.0**-100, 0.0, groups * (127 / largest)).round()
    values = torch.where(codes == 0, 0.0, codes * (largest / 127))
    quantised: Tensor = torch.where(largest.isfinite(), values, torch.nan).flatten(1)
    return quantised


def quantize_fp8(weight: Tensor) -> Fp8Weight:
    """float8_e4m3fn, scale max|w| / 448 of each block of [128, 128]; weight [N, K]."""
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).transpose(1, 2)
    scales = blocks.abs().amax(dim=(2, 3)) / FP8_MAX
    codes = blocks / torch.where(scales > 0, scales, 1.0)[:, :, None, None]
    codes = codes.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    flat = codes.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:rows, :columns]
    return Fp8Weight(pack(flat, 8), scales, columns)


def _groups(weight: Tensor) -> Tensor:
    if weight.shape[1] == 0 or weight.shape[1] % GROUP:
        raise KernelError(
            f"quantize: the weight must have columns in groups of {GROUP}, got {weight.shape[1]}"
        )
    groups: Tensor = weight.float().unflatten(1, (-1, GROUP))
    return groups


def _float16(scales: Tensor) -> Tensor:
    rounded: Tensor = scales.half()
    if not rounded.isfinite().all():
        raise KernelError("quantize: weights are not finite, or too large for float16 scales")
    return rounded


def _round(groups: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    divisors = torch.where(scales == 0, 1.0, scales.float())[..., None]
    return (groups / divisors).round().clamp(low, high) * (scales != 0)[..., None]


def _int_weight(integers: Tensor, scales: Tensor, bits: int) -> IntWeight:
    codes = (integers.flatten(1) + 2 ** (bits - 1)).to(torch.uint8)
    return IntWeight(pack(codes, bits), scales.t().contiguous(), None, bits, codes.shape[1])
