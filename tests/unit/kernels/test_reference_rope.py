"""rope: rotation as multiplication of complex numbers, norms, and where K and V end up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwell.kernels.reference.rope import rope

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 8
NUM_BLOCKS, BLOCK_SIZE = 5, 4
POSITIONS = [0, 1, 7, 30]
SLOTS = [13, 2, 19, 0]  # block 3 offset 1, block 0 offset 2, block 4 offset 3, block 0 offset 0
EPS = 1e-6


def _angles() -> np.ndarray:
    frequencies = 10000.0 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    return np.outer(np.arange(32), frequencies)


def _rotated(heads: np.ndarray) -> np.ndarray:
    """Pairs (j, j + D/2) of heads [T, H, D] are complex numbers, turned by the angle."""
    turn = np.exp(1j * _angles()[POSITIONS])[:, None, :]
    half = HEAD_DIM // 2
    turned = (heads[..., :half] + 1j * heads[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _normed(heads: np.ndarray, weight: torch.Tensor | None) -> np.ndarray:
    if weight is None:
        return heads
    mean = (heads**2).mean(axis=-1, keepdims=True)
    return heads / np.sqrt(mean + EPS) * weight.double().numpy()


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["plain", "normed"])
def norms(request, dtype):
    if not request.param:
        return None, None
    draw = torch.Generator().manual_seed(2)
    return tuple(torch.rand(2, HEAD_DIM, generator=draw).add(0.5).to(dtype))


@pytest.fixture
def qkv(dtype):
    draw = torch.Generator().manual_seed(1)
    width = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    return torch.randn(len(POSITIONS), width, generator=draw).to(dtype)


@pytest.fixture
def result(dtype, qkv, norms):
    """(q, k_cache, v_cache) after rope; the caches were NaN before."""
    angles = torch.from_numpy(_angles())
    caches = torch.full((2, NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM), torch.nan, dtype=dtype)
    q = rope(
        qkv,
        torch.tensor(POSITIONS, dtype=torch.int32),
        torch.cat([angles.cos(), angles.sin()], dim=1).float(),
        *norms,
        EPS,
        *caches,
        torch.tensor(SLOTS, dtype=torch.int32),
    )
    return q, *caches


def _heads(qkv, first, count):
    heads = qkv.double().numpy().reshape(len(POSITIONS), -1, HEAD_DIM)
    return heads[:, first : first + count]


def _tolerance(dtype, norms, expected):
    # Plain: one rounding, of at most half an ulp. With norms: half an ulp of each coordinate for
    # the normalised value and for its product with the weight, before the rotation mixes two.
    # The angles and all products are fp32.
    roundings = 0.5 if norms[0] is None else 2.5
    size = np.abs(expected).max(axis=-1, keepdims=True)
    return torch.from_numpy(
        size * (roundings * torch.finfo(dtype).eps + 16 * torch.finfo(torch.float32).eps)
    )


def test_q_is_normed_and_rotated(result, qkv, norms, dtype, assert_within):
    expected = _rotated(_normed(_heads(qkv, 0, NUM_HEADS), norms[0]))
    assert_within(result[0], torch.from_numpy(expected), _tolerance(dtype, norms, expected))
    assert result[0].dtype == dtype


def test_k_is_normed_rotated_and_cached_at_its_slot(result, qkv, norms, dtype, assert_within):
    expected = _rotated(_normed(_heads(qkv, NUM_HEADS, NUM_KV_HEADS), norms[1]))
    cached = torch.stack([result[1][s // BLOCK_SIZE, :, s % BLOCK_SIZE] for s in SLOTS])
    assert_within(cached, torch.from_numpy(expected), _tolerance(dtype, norms, expected))


def test_v_is_cached_as_it_is(result, qkv, assert_within):
    expected = torch.from_numpy(_heads(qkv, NUM_HEADS + NUM_KV_HEADS, NUM_KV_HEADS))
    cached = torch.stack([result[2][s // BLOCK_SIZE, :, s % BLOCK_SIZE] for s in SLOTS])
    assert_within(cached, expected, 0.0)


def test_other_slots_of_the_cache_stay_untouched(result):
    others = sorted(set(range(NUM_BLOCKS * BLOCK_SIZE)) - set(SLOTS))
    for cache in result[1:]:
        for slot in others:
            assert cache[slot // BLOCK_SIZE, :, slot % BLOCK_SIZE].isnan().all()


def test_a_padding_token_is_written_nowhere(qkv, norms, dtype):
    caches = torch.full((2, NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM), torch.nan, dtype=dtype)
    slots = torch.full((len(SLOTS),), -1, dtype=torch.int32)
    positions = torch.zeros(len(SLOTS), dtype=torch.int32)
    rope(qkv, positions, torch.ones(1, HEAD_DIM), *norms, EPS, *caches, slots)
    assert caches.isnan().all()
