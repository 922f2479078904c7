"""attention in C++ for CPUs: attention_kernel.cpp, one unit an instruction set."""

from __future__ import annotations

from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.cache import Cache, Int8Cache
from qwell.kernels.errors import KernelError
from qwell.kernels.native.paged import check_activations, check_caches, check_indices
from qwell.kernels.native.runner import Runner
from qwell.kernels.ops import Attention, Extent

LARGEST_INT8_HEAD = 512
"""Elements of a head whose products with 16-bit numbers have a sum of 32 bits."""


def bind(runner: Runner) -> Attention:
    """attention on a runner, for float32 q and a cache of any model dtype or an Int8Cache.

    The cache has the layout of native/paged.py. A replay reads block_table, cu_seqlens_q and
    seq_lens anew: buffers for more sequences than a step has are padded with its number of tokens
    in cu_seqlens_q. Raises KernelError at a call whose tensors are not laid out so.
    """

    def attention(
        q: Tensor,
        k_cache: Cache,
        v_cache: Cache,
        block_table: Tensor,
        cu_seqlens_q: Tensor,
        seq_lens: Tensor,
        extent: Extent,  # noqa: ARG001  (sizes launches; here the tensors are asked)
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        cache = check_caches("attention", k_cache, v_cache)
        num_kv_heads, head_dim = cache.num_kv_heads, cache.head_dim
        check_activations("attention", "q", q, 3)
        rows, num_heads, _ = q.shape
        if q.shape[2] != head_dim or num_heads % num_kv_heads != 0:
            raise KernelError(
                f"attention: q must have a multiple of {num_kv_heads} heads, of {head_dim} "
                f"elements, got {tuple(q.shape)}"
            )
        if isinstance(k_cache, Int8Cache) and head_dim > LARGEST_INT8_HEAD:
            raise KernelError(
                f"attention: heads of an Int8Cache may have {LARGEST_INT8_HEAD} elements, "
                f"got {head_dim}"
            )
        if block_table.dim() != 2:
            raise KernelError(
                f"attention: block_table must have shape [S, blocks], "
                f"got {tuple(block_table.shape)}"
            )
        max_seqs, table_stride = block_table.shape
        check_indices("attention", "block_table", block_table, (max_seqs, table_stride))
        check_indices("attention", "cu_seqlens_q", cu_seqlens_q, (max_seqs + 1,))
        check_indices("attention", "seq_lens", seq_lens, (max_seqs,))
        if window is not None and window < 1:
            raise KernelError(f"attention: window must be positive or None, got {window}")
        out = runner.empty(q, rows, num_heads * head_dim)
        call = _native.AttentionCall(
            cache_dtype=cache.cache_dtype,
            q=q.data_ptr(),
            k_cache=cache.k_cache,
            v_cache=cache.v_cache,
            k_scales=cache.k_scales,
            v_scales=cache.v_scales,
            block_table=block_table.data_ptr(),
            cu_seqlens_q=cu_seqlens_q.data_ptr(),
            seq_lens=seq_lens.data_ptr(),
            out=out.data_ptr(),
            rows=rows,
            max_seqs=max_seqs,
            table_stride=table_stride,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            window=window or 0,
            scale=scale,
        )
        runner.run(call, out)
        return out

    return attention
