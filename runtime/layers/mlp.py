"""The SwiGLU MLP of a decoder layer (arXiv 2002.05202)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qwell.kernels.ops import Ops
from qwell.kernels.weights import Weight


@dataclass(frozen=True)
class Mlp:
    """gate_up [2 I, d] holds the gate rows, then the up rows; down [d, I]."""

    gate_up: Weight
    down: Weight

    def __call__(self, ops: Ops, x: Tensor) -> Tensor:
        """down(silu(gate x) * up x): [T, d] -> [T, d]."""
        return ops.linear(ops.silu_mul(ops.linear(x, self.gate_up)), self.down)
