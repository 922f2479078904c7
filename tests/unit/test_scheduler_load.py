"""The scheduler under random loads, with a cache that remembers what was written where.

Every step the books of scheduler and pool must be right, every sequence must find its own tokens
in its blocks, and the stated rules of fairness must hold. In the end every request has ended.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from qwell.runtime.block_pool import BlockPool
from qwell.runtime.kv_cache import BLOCK_SIZE
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.scheduler import Scheduler
from qwell.runtime.sequence import Chunk, Sequence

# Prompts that begin alike: a stretch of one of these, then tokens of their own.
BEGINNINGS = [[family * 7 + place % 5 for place in range(80)] for family in range(2)]


def next_id(place: int) -> int:
    """Mostly the same for equal prompts, so that generated tokens are shared as well."""
    return place % 3


class Load(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(6, 20),
        budget=st.integers(1, 64),
        max_num_seqs=st.integers(1, 6),
        prefix_cache=st.sampled_from((True, True, False)),
    )
    def start(self, num_blocks: int, budget: int, max_num_seqs: int, prefix_cache: bool) -> None:
        self.pool = BlockPool(num_blocks, prefix_cache=prefix_cache)
        self.budget = budget
        self.scheduler = Scheduler(self.pool, max_batch_tokens=budget, max_num_seqs=max_num_seqs)
        self.live: list[Sequence] = []
        self.behind: set[Sequence] = set()
        self.cache: dict[int, tuple[str, list[int]]] = {}  # slot -> what its token ends
        self.added = 0

    @rule(
        family=st.integers(0, 1),
        shared=st.integers(0, 80),
        own=st.integers(1, 40),
        max_tokens=st.integers(1, 40),
        priority=st.sampled_from((0, 0, 0, -1, 2)),
        salt=st.sampled_from(("", "", "x")),
        copies=st.sampled_from((1, 1, 1, 3)),
    )
    def add(
        self,
        family: int,
        shared: int,
        own: int,
        max_tokens: int,
        priority: int,
        salt: str,
        copies: int,
    ) -> None:
        prompt = BEGINNINGS[family][:shared] + [100 + self.added] * own
        if len(prompt) + max_tokens > self.pool.num_blocks * BLOCK_SIZE:
            return
        for _ in range(copies):
            sequence = Sequence(
                str(self.added),
                list(prompt),
                len(prompt),
                SamplingParams(max_tokens=max_tokens),
                seed=0,
                priority=priority,
                cache_salt=salt,
            )
            self.scheduler.add(sequence)
            self.live.append(sequence)
            self.added += 1

    @precondition(lambda self: self.live)
    @rule(place=st.integers(0, 1000))
    def abort(self, place: int) -> None:
        sequence = self.live.pop(place % len(self.live))
        self.behind.discard(sequence)
        self.scheduler.remove(sequence)
        assert sequence.blocks == []
        self.scheduler.check()

    @rule(
        prefill_tokens=st.none() | st.integers(1, 32),
        steps=st.integers(1, 8),
        guesses=st.integers(0, 6),
        right=st.integers(0, 6),
    )
    def steps(self, prefill_tokens: int | None, steps: int, guesses: int, right: int) -> None:
        for _ in range(steps):
            self.step(prefill_tokens, guesses, right)

    def step(self, prefill_tokens: int | None, guesses: int = 0, right: int = 0) -> None:
        running = {s: s.blocks for s in self.live if s.blocks}
        decoding = {s for s in running if s.num_uncomputed == 1}
        preemptions = self.scheduler.num_preemptions
        drafts: dict[Sequence, list[int]] = {}

        def guess(decoding: list[Sequence]) -> dict[Sequence, list[int]]:
            drafts.update((s, self.guess(s, guesses, right)) for s in decoding)
            return drafts

        chunks = self.scheduler.schedule(prefill_tokens, guess)
        self.scheduler.check()
        assert bool(chunks) == bool(self.live), "work waits, but the step is empty"
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        assert sum(chunk.stop - chunk.start for chunk in chunks) <= self.budget
        self.check_preemption(running)
        if self.scheduler.num_preemptions == preemptions:
            self.check_shares(chunks, decoding, prefill_tokens)
        for chunk in chunks:
            self.compute(chunk)
        self.scheduler.computed(chunks)
        for chunk in chunks:
            if chunk.completes:
                self.sample(chunk)
        self.scheduler.check()

    def check_preemption(self, running: dict[Sequence, list[int]]) -> None:
        def ending(sequence: Sequence) -> tuple[int, int, int]:
            return sequence.priority, sequence.num_left, sequence.arrival

        # One that was preempted and admitted again has another list.
        kept = [s for s, blocks in running.items() if blocks and s.blocks is blocks]
        preempted = [s for s in running if s not in kept]
        if preempted and kept:
            assert max(map(ending, kept)) < min(map(ending, preempted))
        self.behind.update(preempted)
        for sequence in self.live:
            if sequence.blocks and sequence not in running:
                assert not self.behind or sequence in self.behind, "a new one went before"

    def check_shares(
        self, chunks: list[Chunk], decoding: set[Sequence], prefill_tokens: int | None
    ) -> None:
        sizes = {chunk.sequence: chunk.end - chunk.start for chunk in chunks}
        assert all(sizes.get(sequence) == 1 for sequence in decoding)
        left = self.budget - len(decoding) - sum(len(chunk.draft_ids) for chunk in chunks)
        assert left >= (self.budget - len(decoding)) // 2, "guesses take more than half of a step"
        if decoding and prefill_tokens is not None:
            left = min(left, prefill_tokens)
        prompts = [s for s in self.live if s.blocks and s not in decoding]
        assert sum(sizes[s] for s in prompts if s in sizes) <= left
        if prompts and left > 0:
            first = min(prompts, key=lambda s: (s.priority, s.arrival))
            assert sizes[first] >= min(first.num_uncomputed, (left + 1) // 2)

    def compute(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        assert chunk.start == sequence.num_computed < chunk.end <= len(sequence.token_ids)
        token_ids = [*sequence.token_ids, *chunk.draft_ids]
        for place in range(chunk.stop):
            slot = sequence.blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
            content = (sequence.cache_salt, token_ids[: place + 1])
            if place >= chunk.start:
                self.cache[slot] = content
            assert self.cache.get(slot) == content, "another sequence's tokens"

    def guess(self, sequence: Sequence, count: int, right: int) -> list[int]:
        """So many tokens that would follow, of which some are right."""
        known = len(sequence.token_ids)
        count = min(count, sequence.num_left - 1)
        return [next_id(known + i) if i < right else 9 for i in range(count)]

    def sample(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        self.behind.discard(sequence)
        sequence.num_in_flight = 1
        sequence.arrived(next_id(len(sequence.token_ids)))
        for guess in chunk.draft_ids:
            if guess != sequence.token_ids[-1]:
                break
            sequence.accepted(next_id(len(sequence.token_ids)))
        if sequence.num_left == 0:
            self.scheduler.remove(sequence)
            self.live.remove(sequence)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        # No step is empty, but preemption computes tokens again.
        work = sum(len(s.token_ids) + s.num_left for s in self.live)
        for _ in range(50 + 20 * work):
            if not self.live:
                break
            self.step(None)
        assert not self.live
        assert not self.scheduler.has_work
        assert self.pool.num_free == self.pool.num_blocks


TestLoad = Load.TestCase
TestLoad.settings = settings(max_examples=60, stateful_step_count=30)
