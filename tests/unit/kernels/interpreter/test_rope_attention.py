"""The Triton rope_attention against rope and then the reference attention, interpreted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwell.kernels.fused_ops import Splits
from qwell.kernels.ops import Extent
from qwell.kernels.reference.attention import attention
from qwell.kernels.triton import rope_attention as module
from qwell.kernels.triton.configs.attention_decode import SPLIT
from qwell.kernels.triton.rope import rope
from qwell.kernels.triton.rope_attention import rope_attention

EPS = 1e-6
POSITIONS = 64
"""Rows of the table of angles; tokens are at any of them, as rotations know no lengths."""


@dataclass
class Step:
    """A token each for sequences in shuffled blocks.

    Slots that hold no token yet are NaN, the new tokens' among them; block 0 belongs to nobody.
    """

    qkv: Tensor
    positions: Tensor
    cos_sin: Tensor
    norms: tuple[Tensor | None, Tensor | None]
    caches: Tensor
    slots: Tensor
    table: Tensor
    lengths: Tensor
    scale: float

    @property
    def rope_arguments(self):
        return self.qkv, self.positions, self.cos_sin, *self.norms, EPS

    def fused(self, caches, bound=None, window=None, slots=None):
        return rope_attention(
            *self.rope_arguments,
            *caches,
            self.slots if slots is None else slots,
            self.table,
            self.lengths,
            self.lengths.max().item() if bound is None else bound,
            self.scale,
            window,
        )

    def expected(self, window=None):
        """Attention by the reference, its keys and queries by the Triton rope; and the caches."""
        caches = self.caches.clone()
        q = rope(*self.rope_arguments, *caches, self.slots)
        count = len(self.lengths)
        starts = torch.arange(count + 1, dtype=torch.int32)
        extent = Extent(count, 1, self.lengths.max().item())
        out = attention(q, *caches, self.table, starts, self.lengths, extent, self.scale, window)
        return out, _tolerance(q, caches, self.lengths), caches


def _tolerance(q, caches, lengths):
    """As of attention: a score is off by D roundings of fp32 of the sum of its absolute products,
    a weight by twice that and a rounding per key; weights are rounded to the model dtype."""
    largest = [x.float().nan_to_num().abs().max().item() for x in (q, *caches)]
    head_dim = q.shape[-1]
    score = head_dim**0.5 * largest[0] * largest[1]
    fp32, model = (torch.finfo(kind).eps for kind in (torch.float32, q.dtype))
    weight = (2 * head_dim * score + lengths.max().item()) * fp32 + 0.5 * model
    # Of the reference, the result is rounded too, and no larger than the largest value.
    return (weight + 0.5 * model) * largest[2]


def _step(lengths, num_heads, num_kv_heads, head_dim, dtype, *, page=16, with_norms=True):
    draw = torch.Generator().manual_seed(sum(lengths) + head_dim)
    counts = [-(-length // page) for length in lengths]
    caches = torch.full((2, sum(counts) + 1, num_kv_heads, page, head_dim), torch.nan, dtype=dtype)
    table = torch.zeros(len(lengths), max(*counts, 1), dtype=torch.int32)
    slots = torch.full((len(lengths),), -1, dtype=torch.int32)
    numbers = (torch.randperm(sum(counts), generator=draw) + 1).int()
    for s, (own, length) in enumerate(zip(numbers.split(counts), lengths, strict=True)):
        table[s, : len(own)] = own
        shape = (2, len(own) * page, num_kv_heads, head_dim)
        tokens = torch.randn(shape, generator=draw).to(dtype)
        tokens[:, max(length - 1, 0) :] = torch.nan
        caches[:, own] = tokens.unflatten(1, (len(own), page)).transpose(2, 3)
        if length > 0:
            slots[s] = own[-1] * page + (length - 1) % page
    width = (num_heads + 2 * num_kv_heads) * head_dim
    angles = torch.rand(POSITIONS, head_dim // 2, generator=draw) * 6
    norms = torch.rand(2, head_dim, generator=draw).add(0.5).to(dtype)
    return Step(
        torch.randn(len(lengths), width, generator=draw).to(dtype),
        torch.randint(POSITIONS, (len(lengths),), generator=draw, dtype=torch.int32),
        torch.cat([angles.cos(), angles.sin()], dim=1),
        tuple(norms) if with_norms else (None, None),
        caches,
        slots,
        table,
        torch.tensor(lengths, dtype=torch.int32),
        head_dim**-0.5,
    )


def _split_range(length, window):
    """Splits that a sequence has."""
    first = 0 if window is None else max(length - window, 0) // SPLIT
    return range(first, -(-length // SPLIT))


def _merged(splits: Splits) -> Tensor:
    """Attention from its splits, by definition: [S, Hq * D] in fp64."""
    rows = []
    for s, length in enumerate(splits.seq_lens.tolist()):
        own = list(_split_range(length, splits.window))
        values, stats = splits.values[s, own].double(), splits.stats[s, own].double()
        weights = torch.exp2(stats[..., 0] - stats[..., 0].amax(dim=0)) if own else stats[..., 0]
        total = (weights * stats[..., 1]).sum(dim=0)
        row = (weights[..., None] * values).sum(dim=0) / total[:, None]
        rows.append(row.flatten() if own else torch.zeros(values.shape[1:].numel()).double())
    return torch.stack(rows)


def _assert_as_expected(step, window, bound, interp_guard, nan_empty, assert_within):
    caches = step.caches.clone()
    with interp_guard(), nan_empty():
        splits = step.fused(caches, bound, window)
        expected, tolerance, expected_caches = step.expected(window)
    assert_within(_merged(splits), expected, tolerance)
    # What rope writes, and nothing else: poison equals poison.
    torch.testing.assert_close(caches, expected_caches, rtol=0, atol=0, equal_nan=True)
    _assert_only_own_splits_written(splits)


def _assert_only_own_splits_written(splits):
    own = torch.zeros(splits.stats.shape[:2], dtype=torch.bool)
    for s, length in enumerate(splits.seq_lens.tolist()):
        own[s, list(_split_range(length, splits.window))] = True
    for tensor in (splits.values, splits.stats):
        assert tensor.dtype == torch.float32
        assert not tensor[own].isnan().any()
        assert tensor[~own].isnan().all()


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "page", "window", "with_norms", "dtype"),
    [
        (4, 2, 128, 16, None, True, torch.bfloat16),
        (4, 1, 64, 64, None, False, torch.bfloat16),
        (7, 1, 64, 16, 300, False, torch.float16),
        (2, 2, 80, 16, None, True, torch.float32),
        (4, 2, 80, 64, 1, True, torch.bfloat16),
        (2, 1, 256, 16, 31, True, torch.bfloat16),
        (17, 1, 16, 4, None, True, torch.float32),
        (2, 2, 24, 512, 2, False, torch.float32),
    ],
)
def test_equals_reference(
    num_heads, num_kv_heads, head_dim, page, window, with_norms, dtype, interp_guard, nan_empty,
    assert_within,
):  # fmt: skip
    for lengths in ([1, SPLIT - 1, SPLIT, SPLIT + 1], [2 * SPLIT + 70, 0, 64]):
        step = _step(
            lengths, num_heads, num_kv_heads, head_dim, dtype, page=page, with_norms=with_norms
        )
        _assert_as_expected(step, window, None, interp_guard, nan_empty, assert_within)


@settings(max_examples=15)
@given(
    lengths=st.lists(
        st.one_of(
            st.integers(0, 3 * SPLIT),
            st.integers(-2, 2).flatmap(
                lambda near: st.sampled_from([SPLIT + near, 2 * SPLIT + near])
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    window=st.one_of(st.none(), st.integers(1, 2 * SPLIT + 2)),
    group=st.sampled_from([1, 2, 7]),
    page=st.sampled_from([16, 64]),
    spare=st.integers(0, 2 * SPLIT),
)
def test_any_lengths_and_windows(
    lengths, window, group, page, spare, interp_guard, nan_empty, assert_within
):
    step = _step(lengths, group, 1, 16, torch.float32, page=page)
    bound = max(lengths) + spare
    _assert_as_expected(step, window, bound, interp_guard, nan_empty, assert_within)


@pytest.mark.parametrize("window", [None, SPLIT + 40])
def test_more_splits_than_programs(window, interp_guard, nan_empty, assert_within, monkeypatch):
    monkeypatch.setattr(module, "programs_per_head", lambda *_: 2)
    step = _step([3 * SPLIT + 9, 2 * SPLIT, 5], 2, 1, 16, torch.float32)
    _assert_as_expected(step, window, None, interp_guard, nan_empty, assert_within)


def test_slot_minus_1_is_attended_to_but_not_cached(interp_guard):
    step = _step([20, 33], 4, 2, 32, torch.bfloat16)
    caches, expected_caches = step.caches.clone(), step.caches.clone()
    with interp_guard():
        splits = step.fused(caches, slots=torch.full_like(step.slots, -1))
        expected = step.fused(expected_caches)
    assert torch.equal(splits.values, expected.values)
    assert torch.equal(splits.stats, expected.stats)
    torch.testing.assert_close(caches, step.caches, rtol=0, atol=0, equal_nan=True)


def test_padding_writes_nothing(interp_guard, nan_empty):
    """Not even where its slot is one of somebody else."""
    step = _step([0, 5], 4, 2, 32, torch.bfloat16)
    caches, expected_caches = step.caches.clone(), step.caches.clone()
    with interp_guard(), nan_empty():
        splits = step.fused(caches, slots=torch.tensor([3, -1], dtype=torch.int32))
        step.fused(expected_caches, slots=torch.full_like(step.slots, -1))
    assert splits.values[0].isnan().all()
    assert splits.stats[0].isnan().all()
    torch.testing.assert_close(caches, expected_caches, rtol=0, atol=0, equal_nan=True)


def test_keys_that_are_not_finite_stay_in_their_sequence(interp_guard):
    step = _step([30, 30], 1, 1, 16, torch.float32, with_norms=False)
    step.qkv[0, 16:32] = torch.nan  # the new key of sequence 0
    with interp_guard():
        splits = step.fused(step.caches)
    assert splits.values[0].isnan().all()
    assert not splits.values[1].isnan().any()


def test_no_tokens(interp_guard):
    step = _step([3], 2, 1, 16, torch.float32)
    with interp_guard():
        splits = rope_attention(
            step.qkv[:0],
            step.positions[:0],
            step.cos_sin,
            *step.norms,
            EPS,
            *step.caches,
            step.slots[:0],
            step.table[:0],
            step.lengths[:0],
            300,
            step.scale,
        )
    assert splits.values.shape == (0, 2, 2, 16)
    assert splits.stats.shape == (0, 2, 2, 2)
