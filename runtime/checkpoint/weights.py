"""A checkpoint's weights as a model computes with them: plain tensors, or packed matrices."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.native.packed import Format, PackedWeight, pack
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.errors import EngineStartError

CPU = torch.device("cpu")


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

    def vector(self, *names: str) -> Tensor:
        """As WeightSource."""
        return self._shards.load(names, self._dtype, self._device)

    matrix = vector


class PackedWeights:
    """Matrices packed as they are asked for, vectors in float32; nothing keeps the files open."""

    def __init__(self, shards: Shards, format_name: Format) -> None:
        self._shards = shards
        self._format = format_name

    def vector(self, *names: str) -> Tensor:
        """As WeightSource."""
        return self._shards.load(names, torch.float32, CPU).clone()

    def matrix(self, *names: str) -> PackedWeight:
        """As WeightSource.

        Raises EngineStartError for weights that the format does not hold.
        """
        parts = [self._shards.tensor(name) for name in names]
        try:
            packed = pack(torch.cat(parts) if len(parts) > 1 else parts[0], self._format)
        except KernelError as error:
            raise EngineStartError(
                f"{', '.join(names)} cannot be stored as {self._format}: {error}"
            ) from error
        for name in names:
            self._shards.drop_pages(name)
        return packed
