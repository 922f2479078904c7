"""silu_mul for GPUs: a program takes a run of columns of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import MODEL_DTYPES, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.silu_mul import settings
from qwell.kernels.triton.launch import arch_of, cdiv


@triton.jit
def silu_mul_kernel(gate_up_ptr, y_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns program_id(1) of row program_id(0) of y [T, WIDTH]; gate_up is [T, 2 WIDTH]."""
    i_row = tl.program_id(0).to(tl.int64)  # T * 2 I can pass 2^31
    o_column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < WIDTH
    p_gate = gate_up_ptr + i_row * (2 * WIDTH) + o_column
    b_gate = tl.load(p_gate, mask=m_column, other=0.0).to(tl.float32)
    b_up = tl.load(p_gate + WIDTH, mask=m_column, other=0.0).to(tl.float32)
    b_y = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    tl.store(y_ptr + i_row * WIDTH + o_column, b_y.to(y_ptr.dtype.element_ty), mask=m_column)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2 I] = gate | up -> [T, I]; in fp32, rounded once.

    Raises KernelError for a tensor that is not contiguous, has an odd width or another dtype.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise KernelError(f"silu_mul: gate_up must have shape [T, 2 I], got {tuple(gate_up.shape)}")
    if gate_up.dtype not in MODEL_DTYPES:
        raise KernelError(f"silu_mul: gate_up must be one of {MODEL_DTYPES}, got {gate_up.dtype}")
    check_tensor("silu_mul", "gate_up", gate_up, gate_up, tuple(gate_up.shape))
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if y.numel() > 0:
        chosen = settings(arch_of(gate_up.device), width)
        silu_mul_kernel[(rows, cdiv(width, chosen.block))](
            gate_up,
            y,
            WIDTH=width,
            BLOCK=chosen.block,
            num_warps=chosen.num_warps,
            enable_fp_fusion=True,
        )
    return y
