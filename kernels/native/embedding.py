"""embedding in C++ for CPUs: rows of plain and of packed tables, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.checks import MODEL_DTYPES, check_cpu, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.native.packed import PackedWeight
from qwell.kernels.native.runner import FORMATS, Runner
from qwell.kernels.ops import Embedding

_PLAIN_FORMATS = {
    torch.float32: _native.WeightFormat.f32,
    torch.bfloat16: _native.WeightFormat.bf16,
    torch.float16: _native.WeightFormat.f16,
}


def bind(runner: Runner) -> Embedding:
    """embedding on a runner: rows of table [V, d] for ids [T], exactly, as float32 [T, d].

    Values of ids are trusted, and read when the op runs: a replay follows what they are then.
    Raises KernelError at a call whose ids are not contiguous int32 [T], or whose table is neither
    packed nor a contiguous tensor [V, d] of a model dtype; all on the CPU.
    """

    def embedding(ids: Tensor, table: Tensor | PackedWeight) -> Tensor:
        if ids.dim() != 1 or ids.dtype != torch.int32 or not ids.is_contiguous():
            raise KernelError(
                f"embedding: ids must be contiguous int32 [T], got {ids.dtype} {tuple(ids.shape)}"
            )
        check_cpu("embedding", "ids", ids)
        packed = isinstance(table, PackedWeight)
        if isinstance(table, PackedWeight):
            data, weight_format = table.data, FORMATS[table.format]
        else:
            _check_plain(table)
            data, weight_format = table, _PLAIN_FORMATS[table.dtype]
        rows, width = len(ids), table.shape[1]
        y = runner.empty(ids, rows, width, dtype=torch.float32)
        call = _native.EmbeddingCall(
            ids=ids.data_ptr(),
            table=data.data_ptr(),
            y=y.data_ptr(),
            rows=rows,
            width=width,
            format=weight_format,
            packed=packed,
        )
        runner.run(call, y)
        return y

    return embedding


def _check_plain(table: Tensor) -> None:
    if table.dim() != 2 or table.shape[1] == 0 or table.dtype not in MODEL_DTYPES:
        raise KernelError(
            f"embedding: table must have shape [V, d >= 1] and one of {MODEL_DTYPES}, "
            f"got {tuple(table.shape)} of {table.dtype}"
        )
    check_tensor("embedding", "table", table, table, tuple(table.shape))
    check_cpu("embedding", "table", table)
