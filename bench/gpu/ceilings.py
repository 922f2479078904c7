"""What this GPU reaches at best: times are judged by that, not by a datasheet."""

from __future__ import annotations

import torch

from qwell.bench.gpu.timing import Timer
from qwell.bench.work import Ceilings

COPY_BYTES = 1 << 30
MATMUL_SIDE = 8192


def measure(
    device: torch.device,
    timer: Timer,
    copy_bytes: int = COPY_BYTES,
    matmul_side: int = MATMUL_SIDE,
) -> Ceilings:
    """What torch's own copy and bfloat16 matrix product reach.

    Copies `copy_bytes`, counting read and written ones both; multiplies two matrices of
    `matmul_side` squared.
    """
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * copy_bytes / timer.seconds(lambda: target.copy_(source))
    # Zeros would multiply faster: they take less power, and clocks follow power.
    a, b = torch.randn(2, matmul_side, matmul_side, device=device).bfloat16()
    out = torch.empty_like(a)
    flops = 2 * matmul_side**3 / timer.seconds(lambda: torch.mm(a, b, out=out))
    return Ceilings(bandwidth, flops)
