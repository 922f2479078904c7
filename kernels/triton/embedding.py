"""embedding for GPUs: a program copies a run of columns of a row of the table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import MODEL_DTYPES, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.embedding import settings
from qwell.kernels.triton.launch import arch_of, cdiv


@triton.jit
def embedding_kernel(ids_ptr, table_ptr, y_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns program_id(1) of row program_id(0) of y [T, WIDTH]."""
    i_row = tl.program_id(0).to(tl.int64)
    i_table = tl.load(ids_ptr + i_row).to(tl.int64)  # V * d can pass 2^31
    o_column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < WIDTH
    b_row = tl.load(table_ptr + i_table * WIDTH + o_column, mask=m_column)
    tl.store(y_ptr + i_row * WIDTH + o_column, b_row, mask=m_column)


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of table [V, d] for int32 ids [T] in 0 .. V - 1 -> [T, d].

    Raises KernelError for other shapes and dtypes; the values of ids are not looked at.
    """
    if table.dim() != 2 or table.dtype not in MODEL_DTYPES:
        raise KernelError(
            f"embedding: table must have shape [V, d] and one of {MODEL_DTYPES}, "
            f"got {tuple(table.shape)} of {table.dtype}"
        )
    check_tensor("embedding", "table", table, table, tuple(table.shape))
    if ids.dim() != 1 or ids.dtype != torch.int32 or not ids.is_contiguous():
        raise KernelError(
            f"embedding: ids must be contiguous int32 [T], got {ids.dtype} {tuple(ids.shape)}"
        )
    if ids.device != table.device:
        raise KernelError(f"embedding: ids must be on {table.device}, got {ids.device}")
    rows, width = len(ids), table.shape[1]
    y = torch.empty((rows, width), dtype=table.dtype, device=table.device)
    if y.numel() > 0:
        chosen = settings(arch_of(table.device), width)
        embedding_kernel[(rows, cdiv(width, chosen.block))](
            ids,
            table,
            y,
            WIDTH=width,
            BLOCK=chosen.block,
            num_warps=chosen.num_warps,
            enable_fp_fusion=True,
        )
    return y
