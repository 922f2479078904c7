"""The Triton attention against the reference, and bit for bit against itself, interpreted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from qwell.kernels.ops import Extent
from qwell.kernels.reference.attention import attention as reference
from qwell.kernels.triton import attention_decode as decode_module
from qwell.kernels.triton import attention_prefill as prefill_module
from qwell.kernels.triton.attention import attention
from qwell.kernels.triton.configs.attention_decode import SPLIT

DTYPES = [torch.float32, torch.bfloat16]


@dataclass
class Paged:
    """Sequences in shuffled blocks; slots that no sequence owns are NaN, block 0 among them."""

    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    lengths: list[int]


def _paged(lengths, num_kv_heads, head_dim, dtype, block_size=16):
    draw = torch.Generator().manual_seed(sum(lengths))
    counts = [-(-length // block_size) for length in lengths]
    shape = (sum(counts) + 1, num_kv_heads, block_size, head_dim)
    k_cache, v_cache = torch.full((2, *shape), torch.nan, dtype=dtype)
    table = torch.zeros(len(lengths), max(*counts, 1), dtype=torch.int32)
    numbers = (torch.randperm(sum(counts), generator=draw) + 1).int()
    for row, own, length in zip(table, numbers.split(counts), lengths, strict=True):
        row[: len(own)] = own
        full = block_size * len(own)
        for cache in (k_cache, v_cache):
            tokens = torch.randn(full, num_kv_heads, head_dim, generator=draw).to(dtype)
            tokens[length:] = torch.nan
            cache[own] = tokens.view(len(own), block_size, num_kv_heads, head_dim).transpose(1, 2)
    return Paged(k_cache, v_cache, table, lengths)


def _queries(counts, num_heads, head_dim, dtype):
    draw = torch.Generator().manual_seed(sum(counts))
    return torch.randn(sum(counts), num_heads, head_dim, generator=draw).to(dtype)


def _run(op, paged, q, counts, *, num_decodes=0, window=None, chosen=None, lengths=None):
    """`counts` queries of the chosen sequences (all), at the ends of their first `lengths` keys."""
    chosen = list(range(len(paged.lengths))) if chosen is None else chosen
    lengths = [paged.lengths[s] for s in chosen] if lengths is None else lengths
    return op(
        q,
        paged.k_cache,
        paged.v_cache,
        paged.block_table[chosen],
        torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
        Extent(num_decodes, max(counts), max(lengths)),
        q.shape[-1] ** -0.5,
        window,
    )


def _tolerance(q, paged, expected, dtype):
    """A score is off by D roundings of fp32 of the sum of its absolute products, a weight by
    twice that and a rounding per key; weights are rounded to the model dtype before they meet
    the values, as is the result."""
    largest = [x.float().nan_to_num().abs().max().item() for x in (q, paged.k_cache, paged.v_cache)]
    head_dim = q.shape[-1]
    score = head_dim**0.5 * largest[0] * largest[1]
    fp32, model = (torch.finfo(kind).eps for kind in (torch.float32, dtype))
    weight = (2 * head_dim * score + max(paged.lengths)) * fp32 + 0.5 * model
    return weight * largest[2] + 0.5 * model * expected.abs().double()


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size", "window", "dtype"),
    [
        (4, 2, 64, 16, None, torch.bfloat16),
        (4, 2, 128, 16, 70, torch.float16),
        (7, 1, 64, 64, None, torch.float32),
        (5, 1, 24, 16, 1, torch.bfloat16),
        (2, 2, 80, 16, 300, torch.float32),
        (17, 1, 16, 4, None, torch.bfloat16),
        (2, 2, 256, 512, 31, torch.bfloat16),
    ],
)
def test_equals_reference(
    num_heads, num_kv_heads, head_dim, block_size, window, dtype, interp_guard, nan_empty,
    assert_within,
):  # fmt: skip
    # Decodes: two splits and a bit, a first token, a whole tile. Then a prefill, a cached
    # prefix, one query that is no decode, a chunk that ends with a block.
    counts = [1, 1, 1, 37, 5, 1, 16]
    lengths = [2 * SPLIT + 3, 1, 64, 37, SPLIT + 2, 20, 48]
    paged = _paged(lengths, num_kv_heads, head_dim, dtype, block_size)
    q = _queries(counts, num_heads, head_dim, dtype)
    with interp_guard(), nan_empty():
        out = _run(attention, paged, q, counts, num_decodes=3, window=window)
    expected = _run(reference, paged, q, counts, window=window)
    assert_within(out, expected, _tolerance(q, paged, expected, dtype))
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, SPLIT - 5, SPLIT + 40])
def test_decode_and_prefill_give_the_same_bits(window, dtype, interp_guard, nan_empty):
    lengths = [2 * SPLIT + 70, SPLIT, 1]
    paged = _paged(lengths, 1, 16, dtype)
    q = _queries([1] * 3, 6, 16, dtype)
    with interp_guard(), nan_empty():
        decoded = _run(attention, paged, q, [1] * 3, num_decodes=3, window=window)
        prefilled = _run(attention, paged, q, [1] * 3, window=window)
    assert not decoded.isnan().any()
    assert torch.equal(decoded, prefilled)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_has_the_same_bits_alone(dtype, interp_guard):
    counts, lengths = [1, 1, 5, 20], [SPLIT + 30, 7, SPLIT + 4, 20]
    paged = _paged(lengths, 1, 16, dtype)
    q = _queries(counts, 2, 16, dtype)
    with interp_guard():
        together = _run(attention, paged, q, counts, num_decodes=2)
        for s, (rows, expected) in enumerate(
            zip(q.split(counts), together.split(counts), strict=True)
        ):
            decodes = int(counts[s] == 1)
            alone = _run(attention, paged, rows, counts[s : s + 1], num_decodes=decodes, chosen=[s])
            assert torch.equal(alone, expected)


def _chunks_equal_the_whole(window, dtype):
    """For the end of a prompt, around the boundary of two splits."""
    length, chunks = SPLIT + 20, [15, 1, 17, 1, 6]
    paged = _paged([length], 1, 16, dtype)
    q = _queries([sum(chunks)], 2, 16, dtype)
    whole = _run(attention, paged, q, [sum(chunks)], window=window)
    parts = []
    for n, end in zip(chunks, itertools.accumulate(chunks), strict=True):
        lengths = [length - sum(chunks) + end]
        rows = q[end - n : end]
        decodes = int(n == 1)
        parts.append(
            _run(attention, paged, rows, [n], num_decodes=decodes, window=window, lengths=lengths)
        )
    return torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 50])
def test_chunks_have_the_bits_of_the_whole(window, dtype, interp_guard):
    with interp_guard():
        assert _chunks_equal_the_whole(window, dtype)


def test_a_split_that_depends_on_the_launch_changes_bits(interp_guard, monkeypatch):
    """What the tests above would say if prefill and decode did not split alike."""
    monkeypatch.setattr(prefill_module, "SPLIT", 2 * SPLIT)
    with interp_guard():
        assert not _chunks_equal_the_whole(None, torch.float32)


def test_more_splits_than_programs_change_no_bits(interp_guard, monkeypatch):
    paged = _paged([3 * SPLIT + 9], 1, 16, torch.float32)
    q = _queries([1], 2, 16, torch.float32)
    with interp_guard():
        expected = _run(attention, paged, q, [1], num_decodes=1)
        monkeypatch.setattr(decode_module, "programs_per_head", lambda *_: 2)
        assert torch.equal(_run(attention, paged, q, [1], num_decodes=1), expected)


def test_bounds_above_the_lengths_change_no_bits(interp_guard, nan_empty):
    """As in a captured graph: the longest possible sequence, and padding without keys."""
    paged = _paged([40, 3, 0], 2, 32, torch.bfloat16)
    q = _queries([1, 1, 1], 4, 32, torch.bfloat16)
    caches = (paged.k_cache, paged.v_cache, paged.block_table)
    starts, lens = torch.arange(4, dtype=torch.int32), torch.tensor([40, 3, 0], dtype=torch.int32)
    with interp_guard(), nan_empty():
        tight, loose = (
            attention(q, *caches, starts, lens, Extent(3, 1, bound), 0.2)
            for bound in (40, 5 * SPLIT)
        )
    assert torch.equal(tight, loose)
    assert not tight[:2].isnan().any()
    assert (tight[2] == 0).all()


def test_keys_that_are_not_finite_stay_in_their_sequence(interp_guard):
    paged = _paged([30, 30], 1, 16, torch.float32)
    paged.k_cache[paged.block_table[0, 1].item(), 0, 3] = torch.nan
    q = _queries([1, 4], 1, 16, torch.float32)
    with interp_guard():
        out = _run(attention, paged, q, [1, 4], num_decodes=1)
    assert out[0].isnan().all()
    assert not out[1:].isnan().any()


def test_no_tokens(interp_guard):
    paged = _paged([0], 1, 16, torch.float32)
    with interp_guard():
        out = _run(attention, paged, torch.empty(0, 2, 16), [0])
    assert out.shape == (0, 32)
