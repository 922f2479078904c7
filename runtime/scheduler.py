"""Which tokens run in the next step. Plain Python: no tensors, no clock.

A step is scheduled from how many tokens a sequence has; the last of them may still be in
flight: drawn on the device by the step before, its id not known here yet.

Requests join and leave between steps. A step runs one token of every sequence that decodes,
then fills what is left of its token budget with chunks of prompts, oldest first. When blocks
run out, the youngest sequence gives its blocks back and is computed again later; the oldest
always goes on, and every admitted sequence fits the pool alone, so there is always progress.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from qwell.runtime.kv_cache import BlockPool, blocks_for
from qwell.runtime.logit_adjustment import LogitAdjustment, adjustment_of
from qwell.runtime.sampling_params import SamplingParams


@dataclass(eq=False)
class Sequence:
    """A request on its way: its tokens, and how many of them are in the cache.

    Attributes:
        token_ids: the tokens that are known.
        num_in_flight: tokens after these that are drawn, but not known yet.
        num_computed: tokens that are in the cache once the steps in flight have run.
        blocks: where they are.
        end_ids: ids that end it.
        adjustment: what is done to its logits, if anything is.
        num_scored: leading prompt tokens whose log-probabilities have been taken, or need not be:
            the first has none.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    end_ids: frozenset[int] = frozenset()
    num_in_flight: int = 0
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    adjustment: LogitAdjustment | None = field(init=False)
    num_scored: int = 1

    def __post_init__(self) -> None:
        self.adjustment = adjustment_of(
            self.params, self.token_ids, self.num_prompt_tokens, self.end_ids
        )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        return self.num_tokens - self.num_computed

    @property
    def num_generated(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    def arrived(self, token_id: int) -> None:
        """The first token in flight is known."""
        self.num_in_flight -= 1
        self.token_ids.append(token_id)
        if self.adjustment is not None:
            self.adjustment.generated(token_id)


@dataclass(frozen=True)
class Chunk:
    """Tokens start .. end of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def completes(self) -> bool:
        """The next token can be sampled after this chunk."""
        return self.end == self.sequence.num_tokens

    @property
    def scored(self) -> range:
        """Places of the prompt tokens whose log-probabilities this chunk's logits are to give."""
        sequence = self.sequence
        if sequence.params.prompt_logprobs is None:
            return range(0)
        first = max(sequence.num_scored, self.start + 1)
        return range(first, min(self.end + 1, sequence.num_prompt_tokens))


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
        """Forget a sequence, finished or aborted, if it is known; its blocks are free at once.

        That holds for a sequence in flight too: a device runs steps in the order of their
        launch. What a step in flight still writes to a block, it writes before the block's next
        owner does, and an owner reads only what it has written itself.
        """
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
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
        """The step is launched: the chunks' tokens are in the cache for every later one."""
        for chunk in chunks:
            chunk.sequence.num_scored = max(chunk.sequence.num_scored, chunk.scored.stop)
            chunk.sequence.num_computed = chunk.end

    def _can_admit(self) -> bool:
        """Admit the next one only with room for all it has: else it would soon be preempted."""
        if not self._waiting or len(self._running) >= self._max_num_seqs:
            return False
        return blocks_for(self._waiting[0].num_tokens + 1) <= self._pool.num_free

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
