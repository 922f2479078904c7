"""norm_linear for GPUs: a program takes a few rows of the weight, and the norm along with them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_tensor
from qwell.kernels.triton.configs.gemv import settings
from qwell.kernels.triton.gemv import check_tokens, check_weight
from qwell.kernels.triton.gemv_tile import products, store_tokens
from qwell.kernels.triton.launch import arch_of, cdiv, next_power_of_2


@triton.jit(do_not_specialize=["M"])
def norm_linear_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N columns of y [M, N]."""
    i_first = tl.program_id(0) * BLOCK_N
    o_n = tl.minimum(i_first + tl.arange(0, BLOCK_N), N - 1)
    b_y = products(x_ptr, norm_ptr, w_ptr, o_n, M, eps, K, True, TOKENS, BLOCK_K)
    if HAS_BIAS:
        b_y += tl.load(bias_ptr + o_n).to(tl.float32)[None, :]
    store_tokens(b_y, y_ptr, i_first, M, N)


def norm_linear(
    x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """linear(rms_norm(x, norm, eps), weight, bias): x [T, K], weight [N, K] -> [T, N].

    In fp32, rounded once. Raises KernelError for more than MAX_FUSED_TOKENS tokens and for
    tensors that are not contiguous, do not fit together or are of different dtypes or devices.
    """
    tokens, k = check_tokens("norm_linear", "x", x)
    check_tensor("norm_linear", "norm", norm, x, (k,))
    n = check_weight("norm_linear", "weight", weight, x, k)
    if bias is not None:
        check_tensor("norm_linear", "bias", bias, x, (n,))
    y = torch.empty((tokens, n), dtype=x.dtype, device=x.device)
    if y.numel() > 0:
        chosen = settings(arch_of(x.device), n)
        norm_linear_kernel[(cdiv(n, chosen.block_n),)](
            x,
            norm,
            weight,
            y if bias is None else bias,
            y,
            tokens,
            eps,
            N=n,
            K=k,
            HAS_BIAS=bias is not None,
            TOKENS=next_power_of_2(tokens),
            BLOCK_N=chosen.block_n,
            BLOCK_K=chosen.block_k,
            num_warps=chosen.num_warps,
            enable_fp_fusion=True,
        )
    return y
