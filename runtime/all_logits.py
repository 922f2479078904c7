"""Logits of a whole text, for measurements of what a model says."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from qwell.runtime.batch import build_batch
from qwell.runtime.block_pool import BlockPool
from qwell.runtime.errors import RequestError
from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for
from qwell.runtime.loader import LoadedModel
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Chunk, Sequence


@torch.inference_mode()
def all_logits(
    model: LoadedModel, pool: BlockPool, token_ids: SequenceOf[int], max_batch_tokens: int
) -> Tensor:
    """Logits of every position, fp32 [T, V], in chunks through the cache as in serving.

    Args:
        model: computes them.
        pool: lends the blocks, and has them back.
        token_ids: T of them, as the model takes.
        max_batch_tokens: most tokens of a chunk.

    Raises:
        RequestError: others have the blocks.
    """
    length = len(token_ids)
    sequence = Sequence("logits", list(token_ids), length, SamplingParams(), seed=0)
    if blocks_for(length) > pool.num_free:
        raise RequestError("the KV cache is in use by running requests; let them finish first")
    sequence.blocks += pool.take(blocks_for(length))
    try:
        pieces = []
        for start in range(0, length, max_batch_tokens):
            chunk = Chunk(sequence, start, min(start + max_batch_tokens, length))
            batch = build_batch([chunk], BLOCK_SIZE, model.device, all_logits=True)
            pieces.append(model.decoder.forward(batch, model.cache))
        return torch.cat(pieces)
    finally:
        pool.give_back(sequence.blocks)
