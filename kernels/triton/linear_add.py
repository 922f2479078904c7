"""linear_add for GPUs: a program takes a few rows of the weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_tensor
from qwell.kernels.triton.configs.gemv import settings
from qwell.kernels.triton.gemv import check_tokens, check_weight
from qwell.kernels.triton.gemv_tile import load_tokens, products, store_tokens
from qwell.kernels.triton.launch import arch_of, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["M"])
def linear_add_kernel(
    x_ptr,
    w_ptr,
    residual_ptr,
    y_ptr,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N columns of y [M, N]."""
    i_first = tl.program_id(0) * BLOCK_N
    THREADS: tl.constexpr = BLOCK_K // 8
    b_residual = load_tokens(residual_ptr, i_first, M, N, TOKENS, BLOCK_N, THREADS)
    o_n = tl.minimum(i_first + tl.arange(0, BLOCK_N), N - 1)
    b_y = products(x_ptr, x_ptr, w_ptr, o_n, M, 0.0, K, False, TOKENS, BLOCK_K)
    b_y += tl.sum(b_residual.to(tl.float32), axis=2)
    store_tokens(b_y, y_ptr, i_first, M, N)


def linear_add(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """residual + linear(x, weight): x [T, K], weight [N, K], residual [T, N] -> [T, N].

    In fp32, rounded once. Raises KernelError for more than MAX_FUSED_TOKENS tokens and for
    tensors that are not contiguous, do not fit together or are of different dtypes or devices.
    """
    tokens, k = check_tokens("linear_add", "x", x)
    n = check_weight("linear_add", "weight", weight, x, k)
    check_tensor("linear_add", "residual", residual, x, (tokens, n))
    y = torch.empty_like(residual)
    if y.numel() > 0:
        chosen = settings(arch_of(x.device), n)
        linear_add_kernel[(cdiv(n, chosen.block_n),)](
            x,
            weight,
            residual,
            y,
            tokens,
            N=n,
            K=k,
            TOKENS=next_power_of_2(tokens),
            BLOCK_N=chosen.block_n,
            BLOCK_K=chosen.block_k,
            num_warps=chosen.num_warps,
            enable_fp_fusion=True,
        )
    return y
