"""The table of rotary angles, plain or extended by YaRN."""

from __future__ import annotations

import math

import torch

from qwell.runtime.checkpoint.config import Rope, Yarn


def cos_sin_table(
    rope: Rope, head_dim: int, num_positions: int, device: torch.device
) -> torch.Tensor:
    """cos | sin of every position and frequency, fp32 [num_positions, head_dim].

    Frequency j of head_dim / 2 is theta^(-2j / head_dim) (arXiv 2104.09864).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequency = 1.0 / rope.theta**exponent
    factor = 1.0
    if rope.yarn is not None:
        frequency = _yarn_frequency(frequency, rope.yarn, rope.theta, head_dim)
        factor = rope.yarn.attention_factor
    angle = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1) * frequency
    return (torch.cat((angle.cos(), angle.sin()), dim=1) * factor).to(device)


def _yarn_frequency(
    frequency: torch.Tensor, yarn: Yarn, theta: float, head_dim: int
) -> torch.Tensor:
    """Interpolate slow frequencies, keep fast ones, blend between (arXiv 2309.00071, 3.2)."""

    def dimension(rotations: float) -> float:
        wavelength = yarn.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequency * (1 - ramp) + frequency / yarn.factor * ramp
