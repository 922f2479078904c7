"""Ops that already give a sequence the same bits alone and in a batch; `linear` is not one yet."""

from __future__ import annotations

import pytest
import torch

from qwell.kernels.ops import Extent
from qwell.kernels.registry import build_ops

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 6, 2, 24, 16
COUNTS, LENGTHS = (1, 9, 1, 33), (40, 9, 7, 50)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["rms_norm", "silu_mul", "embedding"])
def test_rows(op: str, dtype: torch.dtype) -> None:
    ops = build_ops(torch.device("cpu"), dtype)
    torch.manual_seed(0)
    weight, table = torch.randn(202).to(dtype), torch.randn(50, 202).to(dtype)
    run = {
        "rms_norm": lambda x: ops.rms_norm(x, weight, 1e-6)[0],
        "silu_mul": ops.silu_mul,
        "embedding": lambda x: ops.embedding(x[:, 0].abs().int() % 50, table),
    }[op]
    batch = (10 * torch.randn(21, 202)).to(dtype)
    together = run(batch)
    for row in range(21):
        assert torch.equal(run(batch[row : row + 1])[0], together[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 11])
def test_sequences_in_rope_and_attention(dtype: torch.dtype, window: int | None) -> None:
    ops = build_ops(torch.device("cpu"), dtype)
    torch.manual_seed(0)
    blocks = [-(-length // BLOCK) for length in LENGTHS]
    table = torch.zeros(len(LENGTHS), max(blocks), dtype=torch.int32)
    numbers = torch.randperm(sum(blocks)).int()
    for row, own in zip(table, numbers.split(blocks), strict=True):
        row[: len(own)] = own
    caches = [
        torch.randn(sum(blocks), KV_HEADS, HEAD_DIM, BLOCK).to(dtype).mT,
        torch.randn(sum(blocks), KV_HEADS, BLOCK, HEAD_DIM).to(dtype),
    ]
    angles = torch.randn(64, HEAD_DIM)
    qkv = torch.randn(sum(COUNTS), (HEADS + 2 * KV_HEADS) * HEAD_DIM).to(dtype)

    def run(chosen: list[int]) -> list[torch.Tensor]:
        rows, positions, starts = [], [], [0]
        offsets = [sum(COUNTS[:s]) for s in chosen]
        for s, offset in zip(chosen, offsets, strict=True):
            rows += range(offset, offset + COUNTS[s])
            positions += range(LENGTHS[s] - COUNTS[s], LENGTHS[s])
            starts.append(len(rows))
        slots = [
            int(table[s, p // BLOCK]) * BLOCK + p % BLOCK
            for s in chosen
            for p in range(LENGTHS[s] - COUNTS[s], LENGTHS[s])
        ]
        k_cache, v_cache = (cache.clone() for cache in caches)
        q = ops.rope(
            qkv[rows],
            torch.tensor(positions, dtype=torch.int32),
            angles,
            None,
            None,
            1e-6,
            k_cache,
            v_cache,
            torch.tensor(slots, dtype=torch.int32),
        )
        out = ops.attention(
            q,
            k_cache,
            v_cache,
            table[chosen],
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor([LENGTHS[s] for s in chosen], dtype=torch.int32),
            Extent(num_decodes=0, max_query_len=max(COUNTS), max_seq_len=max(LENGTHS)),
            HEAD_DIM**-0.5,
            window,
        )
        return list(out.split([COUNTS[s] for s in chosen]))

    together = run(list(range(len(LENGTHS))))
    for s, expected in enumerate(together):
        assert torch.equal(run([s])[0], expected)
