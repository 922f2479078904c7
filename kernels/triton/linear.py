"""linear for GPUs: picks the kernel by weight format and launch settings by number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels.checks import MODEL_DTYPES, check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.triton.configs.linear import (
    DENSE,
    FLOAT32,
    PACKED,
    Settings,
    part_width,
    settings,
)
from qwell.kernels.triton.launch import arch_of, cdiv
from qwell.kernels.triton.linear_dense import linear_dense_kernel
from qwell.kernels.triton.linear_packed import linear_packed_kernel
from qwell.kernels.triton.linear_tile import add_parts_kernel
from qwell.kernels.weights import BLOCK, Fp8Weight, IntWeight, Weight

ADD_BLOCK = 1024


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N] -> [T, N].

    fp32 sums, one rounding; a token's bits do not depend on the other tokens. Raises KernelError
    for tensors that are not contiguous, do not fit together or are on different devices.
    """
    rows, n, k = _check(x, weight, bias)
    y = torch.empty((rows, n), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    arch = arch_of(x.device)
    formats = DENSE if isinstance(weight, Tensor) else PACKED
    chosen = settings(arch, FLOAT32 if x.dtype == torch.float32 else formats, rows)
    width = part_width(n, k)
    parts = -(-k // width) if chosen.spread else 1
    if parts == 1:
        _launch(arch, chosen, x, weight, bias, y, width, 1)
        return y
    sums = torch.empty((parts, rows, n), dtype=torch.float32, device=x.device)
    _launch(arch, chosen, x, weight, None, sums, width, parts)
    add_parts_kernel[(rows, cdiv(n, ADD_BLOCK))](
        sums,
        y if bias is None else bias,
        y,
        rows,
        N=n,
        PARTS=parts,
        HAS_BIAS=bias is not None,
        BLOCK=ADD_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return y


def _launch(
    arch: str,
    chosen: Settings,
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    y: Tensor,
    width: int,
    parts: int,
) -> None:
    n, k = weight.shape
    tiles = cdiv(n, chosen.block_n) * cdiv(len(x), chosen.block_m)
    constants = {
        "N": n,
        "K": k,
        "PART": width,
        "SPREAD": parts > 1,
        "HAS_BIAS": bias is not None,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "num_warps": chosen.num_warps,
        "num_stages": chosen.num_stages,
        "enable_fp_fusion": True,
    }
    if arch.startswith("gfx"):
        # By default the tile's size picks the instruction, and with it an order of summing.
        constants["matrix_instr_nonkdim"] = 16
    bias = y if bias is None else bias
    if isinstance(weight, Tensor):
        block_k = 32 if x.dtype == torch.float32 else 64
        linear_dense_kernel[(tiles, parts)](
            x, weight, bias, y, len(x), BLOCK_K=block_k, **constants
        )
        return
    if isinstance(weight, IntWeight):
        bits, group, zeros = weight.bits, weight.group, weight.zeros
    elif isinstance(weight, Fp8Weight):
        bits, group, zeros = 8, BLOCK, None
    else:
        raise KernelError("linear: a PackedWeight is for the native linear of CPUs")
    linear_packed_kernel[(tiles, parts)](
        x,
        weight.words,
        weight.scales,
        weight.scales if zeros is None else zeros,
        bias,
        y,
        len(x),
        BITS=bits,
        IS_FLOAT=isinstance(weight, Fp8Weight),
        GROUP=group,
        HAS_ZEROS=zeros is not None,
        **constants,
    )


def _check(x: Tensor, weight: Weight, bias: Tensor | None) -> tuple[int, int, int]:
    n, k = weight.shape
    if x.dim() != 2:
        raise KernelError(f"linear: x must have shape [T, {k}], got {tuple(x.shape)}")
    if x.dtype not in MODEL_DTYPES:
        raise KernelError(f"linear: x must be one of {MODEL_DTYPES}, got {x.dtype}")
    check_tensor("linear", "x", x, x, (len(x), k))
    if isinstance(weight, Tensor):
        check_tensor("linear", "weight", weight, x, (n, k))
    elif weight.device != x.device:
        raise KernelError(f"linear: weight must be on {x.device}, got {weight.device}")
    if bias is not None:
        check_tensor("linear", "bias", bias, x, (n,))
    return len(x), n, k
