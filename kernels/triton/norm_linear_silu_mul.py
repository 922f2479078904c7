"""norm_linear_silu_mul for GPUs: a program takes the same few rows of gate and up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.gemv import settings
from qwell.kernels.triton.gemv import check_tokens, check_weight
from qwell.kernels.triton.gemv_tile import products, store_tokens
from qwell.kernels.triton.launch import arch_of, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["M"])
def norm_linear_silu_mul_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    y_ptr,
    M,
    eps,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N / 2 columns of y [M, WIDTH]; w is gate | up, [2 WIDTH, K]."""
    COLUMNS: tl.constexpr = BLOCK_N // 2
    i_first = tl.program_id(0) * COLUMNS
    o_pair = tl.arange(0, BLOCK_N)
    o_n = tl.minimum(i_first + o_pair // 2, WIDTH - 1) + o_pair % 2 * WIDTH
    b_gate_up = products(x_ptr, norm_ptr, w_ptr, o_n, M, eps, K, True, TOKENS, BLOCK_K)
    b_gate, b_up = tl.split(tl.reshape(b_gate_up, (TOKENS, COLUMNS, 2)))
    b_y = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    store_tokens(b_y, y_ptr, i_first, M, WIDTH)


def norm_linear_silu_mul(x: Tensor, norm: Tensor, eps: float, gate_up: Tensor) -> Tensor:
    """silu_mul(linear(rms_norm(x, norm, eps), gate_up)): x [T, K], gate_up [2 I, K] -> [T, I].

    In fp32, rounded once. Raises KernelError for more than MAX_FUSED_TOKENS tokens and for
    tensors that are not contiguous, do not fit together or are of different dtypes or devices.
    """
    op = "norm_linear_silu_mul"
    tokens, k = check_tokens(op, "x", x)
    check_tensor(op, "norm", norm, x, (k,))
    n = check_weight(op, "gate_up", gate_up, x, k)
    if n % 2:
        raise KernelError(f"{op}: gate_up must have shape [2 I, {k}], got {tuple(gate_up.shape)}")
    y = torch.empty((tokens, n // 2), dtype=x.dtype, device=x.device)
    if y.numel() > 0:
        chosen = settings(arch_of(x.device), n)
        norm_linear_silu_mul_kernel[(cdiv(n, chosen.block_n),)](
            x,
            norm,
            gate_up,
            y,
            tokens,
            eps,
            WIDTH=n // 2,
            K=k,
            TOKENS=next_power_of_2(tokens),
            BLOCK_N=chosen.block_n,
            BLOCK_K=chosen.block_k,
            num_warps=chosen.num_warps,
            enable_fp_fusion=True,
        )
    return y
