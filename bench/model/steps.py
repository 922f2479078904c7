"""Runs a case on an engine's model: the steps that serving makes, sampling included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from qwell.bench.model.cases import Case
from qwell.bench.sequences import sequences
from qwell.bench.work import Demand, Work
from qwell.kernels.cache import Int8Cache, quantize_vectors
from qwell.runtime.batch import lay_out
from qwell.runtime.engine import Engine
from qwell.runtime.kv_cache import BLOCK_SIZE
from qwell.runtime.loader import LoadedModel
from qwell.runtime.sampled_ids import SampledIds
from qwell.runtime.sequence import Chunk, Sequence

WARM_UP_TOKENS = 16


@torch.inference_mode()
def fill_cache(model: LoadedModel) -> None:
    """Give the whole cache values, as prompts of any depth would.

    What nobody wrote is one page of zeros, which is read faster than memory.
    """
    for cache in (*model.cache.k, *model.cache.v):
        # A block's worth drawn, and copied: the values do not matter.
        vectors = torch.randn(cache.shape[1:])
        if isinstance(cache, Int8Cache):
            cache.values[:], cache.scales[:] = quantize_vectors(vectors)
        else:
            cache[:] = vectors


@torch.inference_mode()
def run_case(
    engine: Engine,
    case: Case,
    max_batch_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that the case's steps take, after one that warms up threads and caches.

    A prompt ends with the draw of its first token. The cache must hold `case.cache_tokens`.
    """
    warm_up = min(case.tokens, WARM_UP_TOKENS if case.phase == "prefill" else 1)
    for chunks in _steps(case, warm_up, max_batch_tokens):
        _run_step(engine, chunks)
    start = clock()
    for chunks in _steps(case, case.tokens, max_batch_tokens):
        _run_step(engine, chunks)
    return clock() - start


def demand(work: Work, case: Case, max_batch_tokens: int) -> Demand:
    """What all steps of a case take together."""
    steps = []
    if case.phase == "prefill":
        for start in range(case.depth, case.length, max_batch_tokens):
            end = min(start + max_batch_tokens, case.length)
            steps.append(work.step([(start, end)], int(end == case.length)))
    else:
        for place in range(case.depth, case.length):
            steps.append(work.step([(place, place + 1)] * case.batch, case.batch))
    return Demand(sum(s.bytes_moved for s in steps), sum(s.flops for s in steps))


def _steps(case: Case, tokens: int, max_batch_tokens: int) -> Iterator[list[Chunk]]:
    """The chunks of each step that computes `tokens` more of each sequence."""
    room = [case.length] * case.batch
    if case.phase == "prefill":
        end = case.depth + tokens
        (prompt,) = sequences([end], room)
        for start in range(case.depth, end, max_batch_tokens):
            yield [Chunk(prompt, start, min(start + max_batch_tokens, end))]
    else:
        running = sequences([case.depth + 1] * case.batch, room)
        for _ in range(tokens):
            yield [Chunk(s, s.num_tokens - 1, s.num_tokens) for s in running]


def _run_step(engine: Engine, chunks: list[Chunk]) -> None:
    logits = engine.forward(lay_out(chunks, BLOCK_SIZE))
    sampled: list[Sequence] = [chunk.sequence for chunk in chunks if chunk.completes]
    ids = SampledIds(sampled, engine.sampler.next_ids(logits, sampled))
    for sequence in sampled:
        sequence.num_in_flight += 1
    for sequence, token_id in zip(sampled, ids.wait(), strict=True):
        sequence.arrived(token_id)
