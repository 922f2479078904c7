"""Which tokens run in the next step. Plain Python: no tensors, no clock.

Requests join and leave between steps. A step runs one token of every sequence that decodes,
then fills what is left of its token budget with chunks of prompts, oldest first. When blocks
run out, the youngest sequence gives its blocks back and is computed again later; the oldest
always goes on, and every admitted sequence fits the pool alone, so there is always progress.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from qwell.runtime.kv_cache import BlockPool, blocks_for
from qwell.runtime.sampling_params import SamplingParams


@dataclass(eq=False)
class Sequence:
    """A request on its way: its tokens, and how many of them are in the cache."""

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


@dataclass(frozen=True)
class Chunk:
    """Tokens start .. end of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def completes(self) -> bool:
        """The next token can be sampled after this chunk."""
        return self.end == len(self.sequence.token_ids)


class Scheduler:
    """Continuous batching over one block pool."""

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_num_seqs: int) -> None:
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        # Every running sequence must be able to decode in every step.
        self._max_num_seqs = min(max_num_seqs, max_batch_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its tokens at their most must fit the pool."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or aborted; its blocks are free at once."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._pool.give_back(sequence.blocks)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, every one with its blocks; empty without work."""
        budget = self._max_batch_tokens
        chunks: list[Chunk] = []
        decoding = [s for s in self._running if s.num_uncomputed == 1]
        prefilling = [s for s in self._running if s.num_uncomputed > 1]
        preempted = False
        for sequence in decoding + prefilling:
            if sequence not in self._running or budget == 0:
                continue
            count = min(sequence.num_uncomputed, budget)
            preempted |= self._make_room(sequence, count)
            if sequence in self._running:
                chunks.append(self._take(sequence, count))
                budget -= count
        # A sequence that made room may have had its chunk already.
        chunks = [chunk for chunk in chunks if chunk.sequence in self._running]
        while not preempted and budget > 0 and self._can_admit():
            sequence = self._waiting.popleft()
            self._running.append(sequence)
            count = min(sequence.num_uncomputed, budget)
            chunks.append(self._take(sequence, count))
            budget -= count
        return chunks

    def computed(self, chunks: list[Chunk]) -> None:
        """The step has run: the chunks' tokens are in the cache."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.end

    def _can_admit(self) -> bool:
        """Admit the next one only with room for all it has: else it would soon be preempted."""
        if not self._waiting or len(self._running) >= self._max_num_seqs:
            return False
        return blocks_for(len(self._waiting[0].token_ids) + 1) <= self._pool.num_free

    def _missing_blocks(self, sequence: Sequence, count: int) -> int:
        return blocks_for(sequence.num_computed + count) - len(sequence.blocks)

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Preempt the youngest until `count` more tokens fit; true if any was preempted."""
        preempted = False
        while self._missing_blocks(sequence, count) > self._pool.num_free:
            youngest = self._running.pop()
            self._pool.give_back(youngest.blocks)
            youngest.num_computed = 0
            self._waiting.appendleft(youngest)
            preempted = True
            if youngest is sequence:
                break
        return preempted

    def _take(self, sequence: Sequence, count: int) -> Chunk:
        sequence.blocks += self._pool.take(max(0, self._missing_blocks(sequence, count)))
        return Chunk(sequence, sequence.num_computed, sequence.num_computed + count)
