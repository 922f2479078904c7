"""merge_linear_add for GPUs: a program merges the splits for the few weight rows that it takes.

Every program reads every split, from the L2 cache, so programs have more rows of the weight than
those of the other fused ops.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwell.kernels.checks import check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.fused_ops import Splits
from qwell.kernels.triton.attention_tile import finite_base, normalised
from qwell.kernels.triton.configs.attention_decode import SPLIT
from qwell.kernels.triton.configs.merge_linear_add import settings
from qwell.kernels.triton.gemv import check_tokens, check_weight
from qwell.kernels.triton.gemv_tile import load_tokens, partial_sums, store_tokens
from qwell.kernels.triton.launch import arch_of, cdiv, next_power_of_2


@triton.jit
def _merged_heads(
    values_ptr,
    stats_ptr,
    b_first,
    b_last,
    o_sequence,
    i_head,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Attention of heads i_head.. from splits b_first..b_last of each sequence.

    fp32 [TOKENS, BLOCK_H * BLOCK_D]. Sequences without splits give 0, as do heads and dimensions
    past the end.
    """
    # A thread has the 8 neighbours of D that it has of 16-bit weights, as two loads of fp32, and
    # loads itself the statistics that they go with: nothing passes between threads.
    OCTETS: tl.constexpr = BLOCK_D // 8
    TOKENS: tl.constexpr = b_first.shape[0]
    o_head = i_head + tl.arange(0, BLOCK_H)[None, None, :, None]
    o_octet = tl.arange(0, OCTETS)[None, None, None, :] * 8
    o_half = tl.arange(0, 2)[None, :, None, None, None, None] * 4
    o_d = o_octet[:, None, :, :, :, None] + o_half
    o_d += tl.arange(0, 4)[None, None, None, None, None, :]
    b_first = b_first[:, None, None, None]
    b_last = b_last[:, None, None, None]
    b_max = tl.full((TOKENS, BLOCK_H, OCTETS), float("-inf"), tl.float32)
    b_sum = tl.zeros((TOKENS, BLOCK_H, OCTETS), tl.float32)
    b_acc = tl.zeros((TOKENS, 2, BLOCK_H, OCTETS, 4), tl.float32)
    for start in range(tl.min(b_first), tl.max(b_last), BLOCK_S):
        o_split = start + tl.arange(0, BLOCK_S)[None, :, None, None]
        mask = (o_split >= b_first) & (o_split < b_last)
        mask &= (o_head < NUM_HEADS) & (o_octet < HEAD_DIM)
        o_part = (o_sequence[:, None, None, None] * num_splits + o_split) * NUM_HEADS + o_head
        p_values = values_ptr + o_part[:, None, :, :, :, None] * HEAD_DIM + o_d
        m_values = mask[:, None, :, :, :, None] & (o_d < HEAD_DIM)
        b_split = tl.load(p_values, mask=m_values, other=0.0)
        p_stats = stats_ptr + o_part * 2 + tl.zeros_like(o_octet)
        b_split_max = tl.load(p_stats, mask=mask, other=float("-inf"))
        b_split_sum = tl.load(p_stats + 1, mask=mask, other=0.0)
        b_new = tl.maximum(b_max, tl.max(b_split_max, axis=1))
        b_base = finite_base(b_new)
        b_old = tl.exp2(b_max - b_base)
        b_weight = tl.exp2(b_split_max - b_base[:, None])
        b_max = b_new
        b_sum = b_sum * b_old + tl.sum(b_split_sum * b_weight, axis=1)
        b_acc = b_acc * b_old[:, None, :, :, None]
        b_acc += tl.sum(b_split * b_weight[:, None, :, :, :, None], axis=2)
    b_out = normalised(b_acc, b_sum[:, None, :, :, None])
    return tl.reshape(tl.permute(b_out, 0, 2, 3, 1, 4), (TOKENS, BLOCK_H * BLOCK_D))


@triton.jit(do_not_specialize=["M", "num_splits"])
def merge_linear_add_kernel(
    values_ptr,
    stats_ptr,
    lens_ptr,
    w_ptr,
    residual_ptr,
    y_ptr,
    M,
    num_splits,
    N: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_N columns of y [M, N]; values [M, num_splits, NUM_HEADS, HEAD_DIM]."""
    BLOCK_K: tl.constexpr = BLOCK_H * BLOCK_D
    THREADS: tl.constexpr = BLOCK_K // 8
    o_sequence = tl.arange(0, TOKENS)
    b_len = tl.sum(load_tokens(lens_ptr, 0, M, 1, TOKENS, 1, THREADS), axis=2)
    b_len = tl.reshape(b_len, (TOKENS,))
    b_last = tl.cdiv(b_len, SPLIT)
    b_first = tl.zeros((TOKENS,), tl.int32)
    if WINDOW > 0:
        # Sequences without keys have no say in where the others begin.
        b_first = tl.where(b_len > 0, tl.maximum(b_len - WINDOW, 0) // SPLIT, num_splits)

    i_first = tl.program_id(0) * BLOCK_N
    o_n = i_first + tl.arange(0, BLOCK_N)[None, :, None]
    if N % BLOCK_N != 0:
        o_n = tl.minimum(o_n, N - 1)
    o_d = (tl.arange(0, BLOCK_K) % BLOCK_D)[None, None, :]
    o_head = (tl.arange(0, BLOCK_K) // BLOCK_D)[None, None, :]
    p_w = w_ptr + o_n.to(tl.int64) * (NUM_HEADS * HEAD_DIM) + o_head * HEAD_DIM + o_d
    VECTOR: tl.constexpr = 128 // w_ptr.dtype.element_ty.primitive_bitwidth
    b_sum = tl.zeros((TOKENS, BLOCK_N, BLOCK_K // VECTOR), tl.float32)
    for i_head in range(0, NUM_HEADS, BLOCK_H):
        # Asked for before the splits, on whose merge it has to wait.
        if NUM_HEADS % BLOCK_H == 0 and HEAD_DIM == BLOCK_D:
            b_w = tl.load(p_w + i_head * HEAD_DIM)
        else:
            m_k = (o_head < NUM_HEADS - i_head) & (o_d < HEAD_DIM)
            b_w = tl.load(p_w + i_head * HEAD_DIM, mask=m_k, other=0.0)
        b_heads = _merged_heads(
            values_ptr, stats_ptr, b_first, b_last, o_sequence.to(tl.int64), i_head, num_splits,
            NUM_HEADS, HEAD_DIM, BLOCK_S, BLOCK_H, BLOCK_D,
        )  # fmt: skip
        b_sum += partial_sums(b_heads[:, None, :], b_w.to(tl.float32), VECTOR)
    b_residual = load_tokens(residual_ptr, i_first, M, N, TOKENS, BLOCK_N, THREADS)
    b_y = tl.sum(b_sum, axis=2) + tl.sum(b_residual.to(tl.float32), axis=2)
    store_tokens(b_y, y_ptr, i_first, M, N)


def merge_linear_add(splits: Splits, weight: Tensor, residual: Tensor) -> Tensor:
    """residual + linear(merged splits, weight): weight [N, Hq D], residual [S, N] -> [S, N].

    In fp32, rounded once. Raises KernelError for more than MAX_FUSED_TOKENS sequences and for
    tensors that are not contiguous, do not fit together or are of different dtypes or devices.
    """
    count, num_splits, num_heads, head_dim = _check(splits, residual)
    check_tokens("merge_linear_add", "residual", residual)
    n = check_weight("merge_linear_add", "weight", weight, residual, num_heads * head_dim)
    check_tensor("merge_linear_add", "residual", residual, residual, (count, n))
    y = torch.empty_like(residual)
    if y.numel() > 0:
        tokens = next_power_of_2(count)
        block_d = max(next_power_of_2(head_dim), 16)
        chosen = settings(arch_of(weight.device), tokens)
        merge_linear_add_kernel[(cdiv(n, chosen.block_n),)](
            splits.values,
            splits.stats,
            splits.seq_lens,
            weight,
            residual,
            y,
            count,
            num_splits,
            N=n,
            NUM_HEADS=num_heads,
            HEAD_DIM=head_dim,
            SPLIT=SPLIT,
            WINDOW=splits.window or 0,
            TOKENS=tokens,
            BLOCK_N=chosen.block_n,
            BLOCK_S=chosen.block_s,
            BLOCK_H=min(max(chosen.block_k // block_d, 1), next_power_of_2(num_heads)),
            BLOCK_D=block_d,
            num_warps=chosen.num_warps,
            enable_fp_fusion=True,
        )
    return y


def _check(splits: Splits, like: Tensor) -> tuple[int, int, int, int]:
    values, stats, seq_lens = splits.values, splits.stats, splits.seq_lens
    if values.dim() != 4 or values.dtype != torch.float32:
        raise KernelError(
            "merge_linear_add: values must be float32 [S, splits, Hq, D], "
            f"got {values.dtype} {tuple(values.shape)}"
        )
    count, num_splits, num_heads, head_dim = values.shape
    check_tensor("merge_linear_add", "values", values, values, tuple(values.shape))
    check_tensor("merge_linear_add", "stats", stats, values, (count, num_splits, num_heads, 2))
    if seq_lens.dtype != torch.int32 or seq_lens.stride() != (1,) or len(seq_lens) != count:
        raise KernelError(
            f"merge_linear_add: seq_lens must be contiguous int32 [{count}], "
            f"got {seq_lens.dtype} {tuple(seq_lens.shape)} with strides {seq_lens.stride()}"
        )
    for name, tensor in (("values", values), ("seq_lens", seq_lens)):
        if tensor.device != like.device:
            raise KernelError(
                f"merge_linear_add: {name} must be on {like.device}, got {tensor.device}"
            )
    return count, num_splits, num_heads, head_dim
