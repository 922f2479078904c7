"""A model that is exact and takes no time: its cache holds token ids, its logits are a table's.

The row of the table is a hash of all tokens of the sequence, as read from the cache: one token
that is lost, late or another's changes every token after it. What runs beside a sequence does
not change a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from qwell.kernels.registry import build_ops
from qwell.runtime.batch import Batch
from qwell.runtime.kv_cache import BLOCK_SIZE, KVCache
from qwell.runtime.loader import LoadedModel

VOCAB = 12
CPU = torch.device("cpu")
_TABLE = torch.randn(1009, VOCAB, generator=torch.Generator().manual_seed(0))


class TokenDecoder:
    """Notes the tokens of every step in `steps`."""

    def __init__(self, sample: Callable[..., Tensor] | None) -> None:
        self.ops = build_ops(CPU, torch.float32, {"sample": sample} if sample else {})
        self.steps: list[int] = []

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        self.steps.append(len(batch.input_ids))
        slots = cache.k[0].view(-1)
        slots[batch.slot_mapping.long()] = batch.input_ids
        starts = batch.cu_seqlens_q.tolist()
        rows = {}
        for i, (blocks, length) in enumerate(
            zip(batch.block_table.tolist(), batch.seq_lens.tolist(), strict=True)
        ):
            tokens = [
                int(slots[blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE])
                for place in range(length)
            ]
            for row in range(starts[i], starts[i + 1]):
                rows[row] = _hash(tokens[: int(batch.positions[row]) + 1])
        return _TABLE[[rows[row] for row in batch.logit_rows.tolist()]]


def token_model(num_blocks: int, sample: Callable[..., Tensor] | None = None) -> LoadedModel:
    """The model with a pool of `num_blocks`, which one sequence may fill."""
    cache = KVCache(k=[torch.full((num_blocks, 1, BLOCK_SIZE, 1), -1, dtype=torch.int32)], v=[])
    return LoadedModel(
        config=SimpleNamespace(vocab_size=VOCAB),
        decoder=TokenDecoder(sample),
        cache=cache,
        num_blocks=num_blocks,
        max_model_len=num_blocks * BLOCK_SIZE,
        device=CPU,
        dtype=torch.float32,
        weights="f32",
    )


def _hash(tokens: list[int]) -> int:
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % len(_TABLE)
    return value
