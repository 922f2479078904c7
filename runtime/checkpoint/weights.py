"""A checkpoint's weights as a model computes with them; packed_weights.py has another source."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qwell.kernels.native.packed import PackedWeight
from qwell.runtime.checkpoint.shards import Shards


class WeightSource(Protocol):
    """Gives weights by the names of the tensors that make them, concatenated by rows."""

    def vector(self, *names: str) -> Tensor:
        """Norm weights or biases, in the model dtype."""

    def matrix(self, *names: str) -> Tensor | PackedWeight:
        """A linear weight or an embedding [N, K]."""


class PlainWeights:
    """Everything as tensors of one dtype; see `Shards.load` for what is copied."""

    def __init__(self, shards: Shards, dtype: torch.dtype, device: torch.device) -> None:
        self._shards = shards
        self._dtype = dtype
        self._device = device
        shards.read_ahead()

    def vector(self, *names: str) -> Tensor:
        """As WeightSource."""
        return self._shards.load(names, self._dtype, self._device)

    matrix = vector
