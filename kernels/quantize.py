"""Quantises weights as they are: no data, no search beyond a group's scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwell.kernels.int_groups import round_int4, round_int8
from qwell.kernels.weights import BLOCK, Fp8Weight, IntWeight, pack

FP8_MAX = 448.0


def quantize_int8(weight: Tensor) -> IntWeight:
    """Symmetric 8-bit integers of groups of 32 columns: see round_int8.

    weight [N, K]. Raises KernelError if K is not a multiple of 32 or a scale exceeds float16.
    """
    return _int_weight(*round_int8(weight), bits=8)


def quantize_int4(weight: Tensor) -> IntWeight:
    """4-bit integers of groups of 32 columns: see round_int4.

    weight [N, K]. Raises KernelError if K is not a multiple of 32 or a scale exceeds float16.
    """
    return _int_weight(*round_int4(weight), bits=4)


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


def _int_weight(integers: Tensor, scales: Tensor, bits: int) -> IntWeight:
    codes = (integers.flatten(1) + 2 ** (bits - 1)).to(torch.uint8)
    return IntWeight(pack(codes, bits), scales.t().contiguous(), None, bits, codes.shape[1])
