"""Decode steps captured once and replayed: on a GPU, launching kernels costs more than they do.

A step in which every sequence has one token is copied into static tensors of the next larger
batch size and replayed. The rest of the rows is padding: tokens that are written nowhere
(slot -1) and sequences without keys.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qwell.kernels.ops import Extent
from qwell.runtime.batch import Batch
from qwell.runtime.kv_cache import KVCache, blocks_for

log = logging.getLogger(__name__)

Step = Callable[[], Tensor]
# Turns a step over static tensors into one that replays it: the same result tensor every time.
Capture = Callable[[Step], Step]


class Decoder(Protocol):
    """What is captured: a model family's decoder."""

    def forward(self, batch: Batch, cache: KVCache, out: Tensor | None = None) -> Tensor:
        """Logits [R, V] of the batch's logit_rows, in `out` if it is given."""


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: powers of two to 8, then every eighth, at most doubling the work.

    Below 8 a step is bound by weights, so a few padding rows are free; above, they are not.
    """
    sizes = [size for size in (1, 2, 4) if size < max_num_seqs]
    return [*sizes, *range(8, max_num_seqs, 8), max_num_seqs]


def cuda_capture() -> Capture:
    """Captures into CUDA (or HIP) graphs that share one memory pool."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        # Twice before: the first run compiles kernels and fills caches, which a graph must not.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return capture


@dataclass(frozen=True)
class _Bucket:
    """A batch of static tensors, and the step that was captured over them."""

    batch: Batch
    replay: Step


class DecodeGraphs:
    """Replays decode steps of up to `max(sizes)` sequences."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        *,
        sizes: list[int],
        max_model_len: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        """Capture a step for every size.

        Args:
            decoder, cache: what a step computes and where its keys and values go.
            sizes: batch sizes, ascending.
            max_model_len: most tokens of a sequence; launches are sized for it.
            device: where the static tensors live.
            capture: `cuda_capture()` on GPUs.
        """
        start = time.perf_counter()
        self._sizes = sizes
        self._buckets: dict[int, _Bucket] = {}
        # One result for all sizes: 64 rows of logits are 40 MB, and up to 64 there are 11 sizes.
        logits = decoder.forward(static_batch(sizes[-1], max_model_len, device), cache)
        # The largest first: the smaller ones then fit into the memory it took.
        for size in reversed(sizes):
            batch = static_batch(size, max_model_len, device)

            def step(batch: Batch = batch, out: Tensor = logits[:size]) -> Tensor:
                return decoder.forward(batch, cache, out)

            self._buckets[size] = _Bucket(batch, capture(step))
        log.info(
            "captured decode steps for batches of %s in %.1f s",
            ", ".join(map(str, sizes)),
            time.perf_counter() - start,
        )

    def serves(self, batch: Batch) -> bool:
        """Whether `run` takes this batch: decodes only, and not more than were captured.

        A prompt of which the step had room for a single token is none: it wants no logits.
        """
        count = len(batch.seq_lens)
        is_decode = batch.extent.num_decodes == count == len(batch.logit_rows)
        return is_decode and count <= self._sizes[-1]

    def run(self, batch: Batch) -> Tensor:
        """Logits [S, V] of a batch that `serves` accepts; valid until the next run."""
        count, width = batch.block_table.shape
        bucket = self._buckets[self._sizes[bisect_left(self._sizes, count)]]
        static = bucket.batch
        static.input_ids[:count].copy_(batch.input_ids)
        static.positions[:count].copy_(batch.positions)
        static.block_table[:count, :width].copy_(batch.block_table)
        # Of a padding row only these two are read; its other entries may be of an older step.
        static.slot_mapping[:count].copy_(batch.slot_mapping)
        static.slot_mapping[count:].fill_(-1)
        static.seq_lens[:count].copy_(batch.seq_lens)
        static.seq_lens[count:].zero_()
        return bucket.replay()[:count]


def static_batch(size: int, max_model_len: int, device: torch.device) -> Batch:
    """A decode step of padding alone, its launches sized for sequences of max_model_len tokens."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    return Batch(
        input_ids=zeros(size),
        positions=zeros(size),
        slot_mapping=zeros(size) - 1,
        block_table=zeros(size, blocks_for(max_model_len)),
        cu_seqlens_q=torch.arange(size + 1, dtype=torch.int32, device=device),
        seq_lens=zeros(size),
        logit_rows=torch.arange(size, dtype=torch.int32, device=device),
        extent=Extent(num_decodes=size, max_query_len=1, max_seq_len=max_model_len),
    )
