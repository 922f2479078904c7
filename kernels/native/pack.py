"""Packs weights natively: pack_kernel.cpp, one unit an instruction set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.errors import KernelError
from qwell.kernels.native.packed import Format, PackedWeight, packed_bytes
from qwell.kernels.native.runner import DTYPES, ISAS


class Packer:
    """Packs with a pool of threads; one thread may use it at a time."""

    def __init__(self, threads: int, isa: str = next(iter(ISAS))) -> None:
        """Start so many threads, the caller's counted, for one of ISAS."""
        self._isa = ISAS[isa]
        self._pool = _native.Pool(threads)

    def pack(self, parts: Sequence[Tensor], format_name: Format) -> PackedWeight:
        """The rows of all parts as one weight; the same bits as packed.pack of their concatenation.

        parts: contiguous [N_i, K], each of any model dtype, on the CPU. Nothing is copied but into
        the result. Raises KernelError as packed.pack does, and for parts that are not so.
        """
        columns = parts[0].shape[1]
        for part in parts:
            if part.dtype not in DTYPES or part.dim() != 2 or part.shape[1] != columns:
                raise KernelError(
                    f"pack: parts must be float [N, {columns}], "
                    f"got {part.dtype} of shape {tuple(part.shape)}"
                )
            if part.device.type != "cpu" or not part.is_contiguous():
                raise KernelError("pack: parts must be contiguous and on the CPU")
        rows = sum(len(part) for part in parts)
        data = torch.empty(packed_bytes(format_name, rows, columns), dtype=torch.uint8)
        packed = PackedWeight(format_name, data, rows, columns)
        fits = _native.pack(
            self._isa,
            self._pool,
            _native.WeightFormat[format_name],
            [(part.data_ptr(), len(part), DTYPES[part.dtype]) for part in parts],
            columns,
            data.data_ptr(),
        )
        if not fits:
            raise KernelError("pack: weights are not finite, or too large for float16")
        return packed
