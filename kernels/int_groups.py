"""Rounds weights and activations to integers, with a scale for each 32 columns of a row.

quantize.py and native/packed.py store the same integers and scales, each in a layout of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels.errors import KernelError

GROUP = 32
"""Columns that share a scale."""

INT4_DIVISORS = (-8.0, -8.5, -9.0, -9.5, -7.5, -7.0, 7.0)
"""Candidate scales of a group are its largest weight divided by these: codes run from -8 to 7, so
that the sign which the largest weight takes matters, and clipping it helps the others."""


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers -127 .. 127, scale max|w| / 127 of each group.

    weight [N, K] -> (integers float32 [N, K / 32, 32], scales float16 [N, K / 32]). Raises
    KernelError if K is not a multiple of 32 or a scale exceeds float16.
    """
    groups = _groups(weight)
    scales = _float16(groups.abs().amax(dim=-1) / 127)
    return _round(groups, scales, -127, 127), scales


def round_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers -8 .. 7, the scale of each group being the candidate of least squared error.

    Of equal errors the first wins. Shapes and errors as for round_int8.
    """
    groups = _groups(weight)
    largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))[..., 0]
    best_scales = _float16(largest / INT4_DIVISORS[0])
    best_error = torch.full_like(largest, torch.inf)
    for divisor in INT4_DIVISORS:
        scales = _float16(largest / divisor)
        values = _round(groups, scales, -8, 7) * scales[..., None].float()
        error = _sum_by_halves((values - groups).square())
        best_scales = torch.where(error < best_error, scales, best_scales)
        best_error = torch.minimum(error, best_error)
    return _round(groups, best_scales, -8, 7), best_scales


def quantize_activations(x: Tensor) -> Tensor:
    """What the integer products of CPUs make of activations: float32 [T, K] -> [T, K].

    Integers -127 .. 127 times max|x| / 127 of each 32 columns of a row; groups below 2^-100 are
    zero, groups with an infinity or NaN are NaN.
    """
    groups = _groups(x)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    # A tensor: torch divides a number by a tensor as number * (1 / tensor), rounded twice.
    most = torch.tensor(127.0)
    codes = torch.where(largest < 2.0**-100, 0.0, groups * (most / largest)).round()
    values = torch.where(codes == 0, 0.0, codes * (largest / most))
    quantised: Tensor = torch.where(largest.isfinite(), values, torch.nan).flatten(1)
    return quantised


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


def _sum_by_halves(values: Tensor) -> Tensor:
    """The sum over the last dimension, in an order that every implementation can keep."""
    while values.shape[-1] > 1:
        low, high = values.chunk(2, dim=-1)
        values = low + high
    return values[..., 0]
