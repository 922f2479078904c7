"""rms_norm for GPUs: one program a row, the row held in registers between its two uses."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_rms_norm
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.rms_norm import MAX_WIDTH, settings
from qwell.kernels.triton.launch import arch_of, next_power_of_2


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    s_ptr,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Row program_id of y and s; see kernels/ops.py for the rounding points."""
    start = tl.program_id(0).to(tl.int64) * WIDTH  # T * N can pass 2^31
    o_column = tl.arange(0, BLOCK)
    m_column = o_column < WIDTH

    # Loaded before the reduction, whose barrier it would otherwise wait for.
    b_weight = tl.load(weight_ptr + o_column, mask=m_column, other=0.0)
    b_s = tl.load(x_ptr + start + o_column, mask=m_column, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        b_residual = tl.load(residual_ptr + start + o_column, mask=m_column, other=0.0)
        b_rounded = (b_s + b_residual.to(tl.float32)).to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + start + o_column, b_rounded, mask=m_column)
        b_s = b_rounded.to(tl.float32)

    rstd = tl.rsqrt(tl.sum(b_s * b_s) / WIDTH + eps)
    b_normal = (b_s * rstd).to(y_ptr.dtype.element_ty).to(tl.float32)
    b_y = (b_normal * b_weight.to(tl.float32)).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + start + o_column, b_y, mask=m_column)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """s = x + residual, y = s / rms(s) * weight; x, residual [T, N], weight [N] -> (y, s).

    Raises KernelError for tensors that are not contiguous, of different dtypes or devices, or
    rows above MAX_WIDTH.
    """
    rows, width = check_rms_norm(x, weight, residual)
    if width > MAX_WIDTH:
        raise KernelError(
            f"rms_norm: rows of x must have at most {MAX_WIDTH} elements, got {width}"
        )
    chosen = settings(arch_of(x.device), width)
    y = torch.empty_like(x)
    s = x if residual is None else torch.empty_like(x)
    if rows > 0:
        rms_norm_kernel[(rows,)](
            x,
            x if residual is None else residual,
            weight,
            y,
            s,
            eps,
            WIDTH=width,
            BLOCK=next_power_of_2(width),
            HAS_RESIDUAL=residual is not None,
            num_warps=chosen.num_warps,
            # Only the sum of squares has anything to fuse. Said here because the default of
            # Triton 3.10 is another one, and bits should not follow an upgrade.
            enable_fp_fusion=True,
        )
    return y, s
