"""A checkpoint's weights packed for the native linear of CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from qwell.kernels.errors import KernelError
from qwell.kernels.native.pack import Packer
from qwell.kernels.native.packed import Format, PackedWeight
from qwell.runtime.checkpoint.packed_cache import Matrix, PackedFile
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.errors import EngineStartError

CPU = torch.device("cpu")


class PackedWeights:
    """Packed matrices and float32 vectors, none of which keeps the checkpoint's files open.

    Matrices come from a file that keeps them, or are packed as they are asked for.
    """

    def __init__(self, shards: Shards, formats: Mapping[Matrix, Format]) -> None:
        """`formats` has every matrix that will be asked for."""
        self._shards = shards
        self._formats = formats
        self._threads = torch.get_num_threads()
        self._kept: dict[Matrix, PackedWeight] = {}

    def keep_in(self, file: PackedFile) -> None:
        """Take all matrices from a file, which is made if there is none.

        Raises EngineStartError for weights that the format does not hold, OSError where the file
        cannot be kept.
        """
        self._kept = file.open(self._threads) or file.make(self._pack, self._threads)

    def vector(self, *names: str) -> Tensor:
        """As WeightSource."""
        return self._shards.load(names, torch.float32, CPU).clone()

    def matrix(self, *names: str) -> PackedWeight:
        """As WeightSource.

        Raises EngineStartError for weights that the format does not hold.
        """
        return self._kept[names] if self._kept else self._pack(*names)

    @cached_property
    def _packer(self) -> Packer:
        self._shards.read_ahead()
        return Packer(self._threads)

    def _pack(self, *names: str) -> PackedWeight:
        parts = [self._shards.tensor(name) for name in names]
        format_name = self._formats[names]
        try:
            packed = self._packer.pack(parts, format_name)
        except KernelError as error:
            raise EngineStartError(
                f"{', '.join(names)} cannot be stored as {format_name}: {error}"
            ) from error
        for name in names:
            self._shards.drop_pages(name)
        return packed
