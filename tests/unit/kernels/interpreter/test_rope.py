"""The Triton rope against the reference, in the guarded interpreter."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.reference.rope import rope as reference
from qwell.kernels.triton.rope import rope

EPS = 1e-6
BLOCK, NUM_BLOCKS = 16, 4
POSITIONS = torch.tensor([0, 5, 39, 7], dtype=torch.int32)
SLOTS = torch.tensor([37, 0, 63, 16], dtype=torch.int32)


def _inputs(num_heads, num_kv_heads, head_dim, dtype, with_norms):
    draw = torch.Generator().manual_seed(head_dim)
    qkv = torch.randn(4, (num_heads + 2 * num_kv_heads) * head_dim, generator=draw).to(dtype)
    angles = torch.rand(40, head_dim // 2, generator=draw) * 6
    norms = torch.rand(2, head_dim, generator=draw).add(0.5).to(dtype) if with_norms else [None] * 2
    return qkv, torch.cat([angles.cos(), angles.sin()], dim=1), *norms


def _caches(num_kv_heads, head_dim, dtype):
    return torch.full((2, NUM_BLOCKS, num_kv_heads, BLOCK, head_dim), torch.nan, dtype=dtype)


def _run(op, inputs, caches, slots, rows=slice(None)):
    qkv, cos_sin, q_norm, k_norm = inputs
    return op(qkv[rows], POSITIONS[rows], cos_sin, q_norm, k_norm, EPS, *caches, slots[rows])


@pytest.mark.parametrize("with_norms", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(16, 8, 128), (14, 2, 64), (3, 1, 24), (5, 1, 80), (2, 2, 256), (2, 1, 16)],
)
def test_equals_reference(
    num_heads, num_kv_heads, head_dim, dtype, with_norms, interp_guard, nan_empty, assert_within
):
    inputs = _inputs(num_heads, num_kv_heads, head_dim, dtype, with_norms)
    caches = _caches(num_kv_heads, head_dim, dtype)
    expected_caches = caches.clone()
    with interp_guard(), nan_empty():
        q = _run(rope, inputs, caches, SLOTS)
    expected_q = _run(reference, inputs, expected_caches, SLOTS)

    # Without norms only fp32 arithmetic in the same order, then one rounding.
    tolerance = torch.zeros((), dtype=torch.float64)
    if with_norms:
        # The mean is summed in another order, at worst D/2 roundings apart. In 16 bits that may
        # move the normalised value, its product with the weight, and the result by an ulp each.
        fp32, model = (torch.finfo(kind).eps for kind in (torch.float32, dtype))
        largest = expected_q.double().abs().amax(dim=-1, keepdim=True)
        tolerance = largest * (head_dim / 2 * fp32 + (0 if dtype == torch.float32 else 3 * model))
    assert_within(q, expected_q, tolerance)
    # Where a whole head is untouched, the cache is as poisoned as it was.
    largest = expected_caches[0].double().abs().nan_to_num().amax(dim=-1, keepdim=True)
    k_tolerance = (tolerance / expected_q.double().abs().amax(dim=-1, keepdim=True)).max() * largest
    assert_within(caches[0], expected_caches[0], k_tolerance + 0.0)
    assert_within(caches[1], expected_caches[1], 0.0)


def test_slot_minus_1_is_not_cached(interp_guard):
    inputs = _inputs(4, 2, 64, torch.bfloat16, True)
    slots = torch.tensor([37, -1, -1, 16], dtype=torch.int32)
    caches, expected = (_caches(2, 64, torch.bfloat16) for _ in range(2))
    with interp_guard():
        q = _run(rope, inputs, caches, slots)
        expected_q = _run(rope, inputs, expected, SLOTS)
    expected[:, 0], expected[:, 3] = torch.nan, torch.nan  # the blocks of the other two slots
    assert torch.equal(q, expected_q)
    torch.testing.assert_close(caches, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_has_the_same_bits_alone(dtype, interp_guard):
    inputs = _inputs(14, 2, 80, dtype, True)
    together, alone = (_caches(2, 80, dtype) for _ in range(2))
    with interp_guard():
        q = _run(rope, inputs, together, SLOTS)
        for row in range(4):
            assert torch.equal(_run(rope, inputs, alone, SLOTS, slice(row, row + 1))[0], q[row])
    torch.testing.assert_close(alone, together, rtol=0, atol=0, equal_nan=True)


def test_no_tokens(interp_guard):
    inputs = _inputs(4, 2, 64, torch.float32, False)
    with interp_guard():
        q = _run(rope, inputs, _caches(2, 64, torch.float32), SLOTS, slice(0, 0))
    assert q.shape == (0, 4, 64)
