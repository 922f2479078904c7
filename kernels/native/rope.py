"""rope in C++ for CPUs: rope_kernel.cpp, one unit an instruction set."""

from __future__ import annotations

from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.cache import Cache
from qwell.kernels.checks import check_tensor
from qwell.kernels.errors import KernelError
from qwell.kernels.native.paged import check_activations, check_caches, check_indices
from qwell.kernels.native.runner import Runner
from qwell.kernels.ops import Rope


def bind(runner: Runner) -> Rope:
    """rope on a runner, for float32 qkv and a cache of any model dtype or an Int8Cache.

    The cache has the layout of native/paged.py; k and v are rounded to its dtype once. A replay
    reads positions and slot_mapping anew. Raises KernelError at a call whose tensors are not laid
    out so.
    """

    def rope(
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        k_cache: Cache,
        v_cache: Cache,
        slot_mapping: Tensor,
    ) -> Tensor:
        cache = check_caches("rope", k_cache, v_cache)
        num_kv_heads, head_dim = cache.num_kv_heads, cache.head_dim
        check_activations("rope", "qkv", qkv, 2)
        rows, width = qkv.shape
        num_heads = width // head_dim - 2 * num_kv_heads
        if width % head_dim != 0 or num_heads < 1 or num_heads % num_kv_heads != 0:
            raise KernelError(
                f"rope: qkv must have (Hq + 2 Hkv) D features, Hkv = {num_kv_heads} and "
                f"D = {head_dim} as in k_cache, Hq a multiple of Hkv; got {tuple(qkv.shape)}"
            )
        if head_dim % 2 != 0:
            raise KernelError(f"rope: k_cache must have an even D, got {head_dim}")
        check_indices("rope", "positions", positions, (rows,))
        check_indices("rope", "slot_mapping", slot_mapping, (rows,))
        check_tensor("rope", "cos_sin", cos_sin, qkv, (len(cos_sin), head_dim))
        for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
            if norm is not None:
                check_tensor("rope", name, norm, qkv, (head_dim,))
        q = runner.empty(qkv, rows, num_heads, head_dim)
        call = _native.RopeCall(
            cache_dtype=cache.cache_dtype,
            qkv=qkv.data_ptr(),
            positions=positions.data_ptr(),
            cos_sin=cos_sin.data_ptr(),
            q_norm=0 if q_norm is None else q_norm.data_ptr(),
            k_norm=0 if k_norm is None else k_norm.data_ptr(),
            slot_mapping=slot_mapping.data_ptr(),
            k_cache=cache.k_cache,
            v_cache=cache.v_cache,
            k_scales=cache.k_scales,
            v_scales=cache.v_scales,
            q=q.data_ptr(),
            rows=rows,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            eps=eps,
        )
        runner.run(call, q)
        return q

    return rope
