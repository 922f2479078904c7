"""The steps of an engine that take most memory of a GPU, run once before there is a cache.

That also compiles what they launch, so that no request waits for it. Keys are read from a cache of
one block, and go nowhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.kernels.ops import MAX_TOP_LOGPROBS, Extent
from qwell.runtime.batch import Batch
from qwell.runtime.decode_graphs import static_batch
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.kv_cache import KVCache, allocate, blocks_for
from qwell.runtime.models.dense import DenseDecoder
from qwell.runtime.sampler import Sampler
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.scheduler import MOST_SCORED
from qwell.runtime.sequence import Sequence
from qwell.runtime.step_logprobs import SampledScores

# Launch settings change behind these numbers of tokens and keys (kernels/triton/configs).
_SMALLER = (16, 64, 256)
_SHORT = 256


def largest_step(
    options: EngineOptions, decoder: DenseDecoder, cache_dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Run the step that takes most memory, and draw from its logits [R, V], which are returned.

    It has max_batch_tokens tokens: as many sequences as may run decode, whose keys have room for
    the longest context, and prompts have the rest. There are logits for all sequences, and for as
    many tokens of prompts as may be scored in a step.
    """
    cache = _one_block(decoder, cache_dtype, device)
    batch = _mixed(options, options.max_batch_tokens, len(decoder.cos_sin), device)
    logits = decoder.forward(batch, cache)
    _draw(decoder, logits[: batch.extent.num_decodes + 1])
    return logits


def smaller_steps(
    options: EngineOptions, decoder: DenseDecoder, cache_dtype: torch.dtype, device: torch.device
) -> None:
    """Run steps of fewer tokens and short contexts, for which other kernels are compiled."""
    cache = _one_block(decoder, cache_dtype, device)
    for tokens in _SMALLER:
        if tokens < options.max_batch_tokens:
            longest = min(_SHORT, len(decoder.cos_sin))
            decoder.forward(_mixed(options, tokens, longest, device), cache)


def _mixed(options: EngineOptions, most: int, longest: int, device: torch.device) -> Batch:
    """A step of `most` tokens, of sequences of up to `longest`."""
    num_decodes = min(options.max_num_seqs, most) - 1
    lengths = [1] * num_decodes
    while (left := most - sum(lengths)) > 0:
        lengths.append(min(left, longest))
    rows = min(num_decodes + 1 + MOST_SCORED, most)

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return Batch(
        input_ids=column([0] * most),
        positions=column([0] * most),
        slot_mapping=column([-1] * most),
        block_table=column([0]).expand(len(lengths), blocks_for(longest)).contiguous(),
        cu_seqlens_q=column([sum(lengths[:s]) for s in range(len(lengths) + 1)]),
        seq_lens=column([0] * num_decodes + lengths[num_decodes:]),
        logit_rows=column(list(range(most - rows, most))),
        extent=Extent(num_decodes, max_query_len=max(lengths), max_seq_len=longest),
    )


def largest_decode(
    options: EngineOptions, decoder: DenseDecoder, cache_dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Run the largest of the steps that are captured; its logits [max_num_seqs, V]."""
    batch = static_batch(options.max_num_seqs, len(decoder.cos_sin), device)
    return decoder.forward(batch, _one_block(decoder, cache_dtype, device))


def _one_block(decoder: DenseDecoder, dtype: torch.dtype, device: torch.device) -> KVCache:
    cache = allocate(decoder.config, 1, dtype, device, decoder.ops)
    for tensor in (*cache.k, *cache.v):
        assert isinstance(tensor, Tensor)  # GPUs have no other cache
        tensor.zero_()
    return cache


def _draw(decoder: DenseDecoder, logits: Tensor) -> None:
    """All that may be done to logits [S, V] after a step, but masks: those take little."""
    params = SamplingParams(
        temperature=1.0, top_p=0.9, repetition_penalty=1.1, logprobs=MAX_TOP_LOGPROBS
    )
    sequences = [Sequence("", [0], 1, params, seed=0) for _ in logits]
    scores = SampledScores(logits, sequences)
    ids = Sampler(decoder.ops).next_ids(logits, sequences)
    scores.of(decoder.ops, ids)()
