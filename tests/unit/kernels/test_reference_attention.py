"""attention against a loop over queries and heads in float64, over a paged and poisoned cache."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from qwell.kernels.ops import Extent
from qwell.kernels.reference.attention import attention

BLOCK_SIZE, HEAD_DIM = 4, 16
NUM_BLOCKS = 40
SCALE = HEAD_DIM**-0.5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass
class Paged:
    """Sequences whose keys and values lie in shuffled blocks; whatever they do not own is NaN."""

    keys: list[np.ndarray]  # [L, Hkv, D] a sequence
    values: list[np.ndarray]
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor


def _paged(lengths: list[int], num_kv_heads: int, dtype: torch.dtype, seed: int) -> Paged:
    draw = torch.Generator().manual_seed(seed)
    shape = (NUM_BLOCKS, num_kv_heads, BLOCK_SIZE, HEAD_DIM)
    k_cache, v_cache = torch.full((2, *shape), torch.nan, dtype=dtype)
    free = iter((torch.randperm(NUM_BLOCKS - 1, generator=draw) + 1).tolist())
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    table = torch.zeros(len(lengths), max(counts) + 1, dtype=torch.int32)  # padded by NaN's block 0
    keys, values = [], []
    for s, length in enumerate(lengths):
        table[s, : counts[s]] = torch.tensor(list(itertools.islice(free, counts[s])))
        k, v = torch.randn(2, length, num_kv_heads, HEAD_DIM, generator=draw).to(dtype)
        for position in range(length):
            block = int(table[s, position // BLOCK_SIZE])
            k_cache[block, :, position % BLOCK_SIZE] = k[position]
            v_cache[block, :, position % BLOCK_SIZE] = v[position]
        keys.append(k.double().numpy())
        values.append(v.double().numpy())
    return Paged(keys, values, k_cache, v_cache, table)


def _by_definition(q, k, v, window):
    """q [n, Hq, D] at the last positions of k, v [L, Hkv, D] -> [n, Hq * D]."""
    num_queries, num_heads, _ = q.shape
    length, num_kv_heads, _ = k.shape
    out = np.zeros_like(q)
    for i, h in itertools.product(range(num_queries), range(num_heads)):
        position = length - num_queries + i
        first = 0 if window is None else max(0, position - window + 1)
        kv_head = h // (num_heads // num_kv_heads)
        scores = [SCALE * (q[i, h] @ k[j, kv_head]) for j in range(first, position + 1)]
        weights = np.exp(np.array(scores) - max(scores))
        out[i, h] = (weights / weights.sum()) @ v[first : position + 1, kv_head]
    return out.reshape(num_queries, -1)


def _run(paged: Paged, q: Tensor, counts: list[int], lengths: list[int], window: int | None):
    starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    caches = (paged.k_cache, paged.v_cache, paged.block_table)
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    extent = Extent(num_decodes=0, max_query_len=max(counts), max_seq_len=max(lengths))
    return attention(q, *caches, starts, seq_lens, extent, SCALE, window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(2, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize(
    ("counts", "lengths"),
    [
        ([5], [5]),  # prefill
        ([1], [9]),  # decode
        ([3], [8]),  # a chunk that ends where a block does
        ([4, 1, 7, 1], [4, 13, 20, 1]),  # prefill, decode, cached prefix, first token
    ],
)
def test_equals_definition(counts, lengths, num_heads, num_kv_heads, window, dtype, assert_within):
    paged = _paged(lengths, num_kv_heads, dtype, seed=len(lengths))
    draw = torch.Generator().manual_seed(9)
    q = torch.randn(sum(counts), num_heads, HEAD_DIM, generator=draw).to(dtype)

    per_sequence = np.split(q.double().numpy(), list(itertools.accumulate(counts))[:-1])
    expected = torch.from_numpy(
        np.concatenate(
            [
                _by_definition(queries, k, v, window)
                for queries, k, v in zip(per_sequence, paged.keys, paged.values, strict=True)
            ]
        )
    )
    # A score is off by at most HEAD_DIM fp32 roundings of the sum of its absolute products, a
    # weight by twice that and a rounding per key; then one rounding to the model dtype.
    largest_k = max(np.abs(k).sum(axis=-1).max() for k in paged.keys)
    scores = SCALE * q.double().abs().max().item() * largest_k
    weights = (HEAD_DIM * scores + max(lengths)) * torch.finfo(torch.float32).eps
    largest_v = max(np.abs(v).max() for v in paged.values)
    tolerance = weights * largest_v + 0.5 * torch.finfo(dtype).eps * expected.abs()

    out = _run(paged, q, counts, lengths, window)
    assert_within(out, expected, tolerance)
    assert out.dtype == dtype


@pytest.mark.parametrize("window", [None, 5])
def test_chunks_of_a_prompt_give_what_the_whole_gives(window, assert_within):
    lengths, chunks = [14], [3, 1, 6, 4]
    paged = _paged(lengths, 2, torch.float32, seed=3)
    q = torch.randn(14, 4, HEAD_DIM, generator=torch.Generator().manual_seed(4))
    whole = _run(paged, q, [14], lengths, window)
    ends = list(itertools.accumulate(chunks))
    parts = [
        _run(paged, q[end - count : end], [count], [end], window)
        for count, end in zip(chunks, ends, strict=True)
    ]
    assert_within(torch.cat(parts), whole, 64 * torch.finfo(torch.float32).eps)


def test_a_padded_sequence_gives_zeros_and_changes_nothing():
    paged = _paged([9, 6], 2, torch.float32, seed=5)
    q = torch.randn(3, 4, HEAD_DIM, generator=torch.Generator().manual_seed(6))
    alone = _run(paged, q[:2], [1, 1], [9, 6], None)
    paged.block_table = torch.cat((paged.block_table, torch.zeros_like(paged.block_table[:1])))
    padded = _run(paged, q, [1, 1, 1], [9, 6, 0], None)
    assert torch.equal(padded[:2], alone)
    assert torch.equal(padded[2], torch.zeros(4 * HEAD_DIM))
