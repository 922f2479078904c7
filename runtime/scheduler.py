"""Which tokens run in the next step. Plain Python: no tensors, no clock.

Requests join and leave between steps, in the order of priority, then of arrival. The rules:

- A step runs one token of every sequence that decodes; prompts share what is left, or the limit
  that the caller sets for steps that also decode. The first prompt in order gets at least half
  of it, so nobody starves; the rest goes to the prompts with the fewest tokens left, so short
  ones are not stuck behind a long one.
- A prompt gets all its blocks when it is admitted, so only decodes can run out of them. Then the
  sequence that would end last, by priority and then by how many tokens it may still generate,
  gives its blocks back and is computed again. No new sequence is admitted until it has caught up.
  Every sequence fits the pool alone, so the one that ends first always goes on, and a preempted
  one generates at least one more token for every time that new ones are let in before it.
- A prompt that begins as one does that is computed just now waits for those blocks, if that
  other one is served no later than it would be itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf

from qwell.runtime.block_pool import BlockPool
from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for
from qwell.runtime.sequence import Chunk, Sequence

MOST_SCORED = 512
"""Most prompt tokens of a step whose log-probabilities are taken: each has a row of logits, of
600 KB for a vocabulary of 151936."""

Guess = Callable[[list[Sequence]], Mapping[Sequence, SequenceOf[int]]]
"""Tokens that may follow some of the sequences."""


def _guess_nothing(_decoding: list[Sequence]) -> Mapping[Sequence, SequenceOf[int]]:
    return {}


class Scheduler:
    """Continuous batching over one block pool.

    Attributes:
        num_preemptions: how often a sequence was preempted since the start.
        num_prompt_tokens: of all sequences that were admitted.
        num_cached_tokens: those of them that were found in the cache.
    """

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_num_seqs: int) -> None:
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        # Every running sequence must be able to decode in every step.
        self._max_num_seqs = min(max_num_seqs, max_batch_tokens)
        self._waiting: list[Sequence] = []  # in the order of `_turn`
        self._running: dict[Sequence, None] = {}
        # Preempted, and not yet where they were then; some wait, some are being computed.
        self._behind: set[Sequence] = set()
        # Names of prompt blocks that are not computed yet, and the running sequence that will.
        self._coming: dict[bytes, Sequence] = {}
        self._arrivals = 0
        # The last step had a place for one more sequence, but no blocks.
        self._is_full = False
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_queued(self) -> int:
        """Sequences that wait for others to end; the next step would admit the rest."""
        room = 0 if self._is_full else self._max_num_seqs - len(self._running)
        return max(0, len(self._waiting) - room)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its tokens at their most must fit the pool."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        insort(self._waiting, sequence, key=self._turn)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or aborted, if it is known; its blocks are free at once.

        That holds for a sequence in flight too: a device runs steps in the order of their
        launch. What a step in flight still writes to a block, it writes before the block's next
        owner does, and an owner reads only what it has written itself, or what was complete when
        it was found.
        """
        if sequence in self._running:
            self._release(sequence)
        else:
            self._stop_waiting(sequence)
        self._behind.discard(sequence)

    def schedule(
        self,
        prefill_tokens: int | None = None,
        guess: Guess = _guess_nothing,
        now_s: float = 0.0,
    ) -> list[Chunk]:
        """The chunks of the next step, every one with its blocks; empty without work.

        Those of sequences that decode come first.

        Args:
            prefill_tokens: most tokens of prompts in a step that also decodes; None is as many as
                the step has room for.
            guess: gives tokens to follow some of those that decode; taken as far as there is room,
                in the cache without taking it from others, in the step up to half of it.
            now_s: when the step begins, for those that start with it.
        """
        decoding = [s for s in self._running if s.num_uncomputed == 1]
        drafts = guess(decoding)
        decoding = self._with_room(decoding)
        budget = self._max_batch_tokens - len(decoding)
        # The other half is for prompts, which must go on whatever is guessed.
        draft_budget = budget // 2
        chunks = []
        for sequence in decoding:
            start = sequence.num_computed
            draft_ids = drafts.get(sequence, ())
            if draft_ids:
                draft_ids = self._drafted(sequence, draft_ids[:draft_budget])
                draft_budget -= len(draft_ids)
                budget -= len(draft_ids)
            chunks.append(Chunk(sequence, start, start + 1, draft_ids))
        if decoding and prefill_tokens is not None:
            budget = min(budget, prefill_tokens)
        if budget > 0:
            self._admit(now_s)
            if len(self._running) > len(decoding):
                served = set(decoding)
                chunks += _shares([s for s in self._running if s not in served], budget)
        return chunks

    def computed(self, chunks: SequenceOf[Chunk]) -> None:
        """The step is launched: the chunks' tokens are in the cache for every later one."""
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.wants_scores:
                sequence.num_scored = max(sequence.num_scored, chunk.scored.stop)
            sequence.num_computed = chunk.end
            self._register(sequence)
            if self._behind and chunk.completes:
                self._behind.discard(sequence)

    def accepted(self, sequence: Sequence) -> None:
        """Guesses for a running sequence were right: their tokens are in the cache as well."""
        self._register(sequence)

    def _turn(self, sequence: Sequence) -> tuple[bool, int, int]:
        return sequence not in self._behind, sequence.priority, sequence.arrival

    def _with_room(self, decoding: list[Sequence]) -> list[Sequence]:
        """Those of `decoding` that go on, once others have made room for one more token of each."""
        growing = {s for s in decoding if s.num_computed == len(s.blocks) * BLOCK_SIZE}
        if len(growing) > self._pool.num_free:
            while len(growing) > self._pool.num_free:
                last = max(self._running, key=_ending)
                self._preempt(last)
                growing.discard(last)
            decoding = [s for s in decoding if s in self._running]
        for sequence in growing:
            sequence.blocks += self._pool.take(1)
        return decoding

    def _drafted(self, sequence: Sequence, draft_ids: SequenceOf[int]) -> SequenceOf[int]:
        """As much of a guess as there are blocks for; it gets them."""
        missing = blocks_for(sequence.num_computed + 1 + len(draft_ids)) - len(sequence.blocks)
        if missing > 0:
            sequence.blocks += self._pool.take(min(missing, self._pool.num_free))
        return draft_ids[: len(sequence.blocks) * BLOCK_SIZE - sequence.num_computed - 1]

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.num_computed = 0
        self._behind.add(sequence)
        insort(self._waiting, sequence, key=self._turn)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        """It runs no longer: others may have its blocks, and nobody waits for those to come."""
        del self._running[sequence]
        for key in sequence.block_keys[sequence.num_registered :]:
            if self._coming.get(key) is sequence:
                del self._coming[key]
        self._pool.give_back(sequence.blocks)

    def _stop_waiting(self, sequence: Sequence) -> None:
        place = bisect_left(self._waiting, self._turn(sequence), key=self._turn)
        if place < len(self._waiting) and self._waiting[place] is sequence:
            del self._waiting[place]

    def _admit(self, now_s: float) -> None:
        """Let waiting sequences in, in their order, while there is room for all that one has."""
        self._is_full = False
        if not self._waiting:
            return
        place = 0
        first = min((s for s in self._running if s.num_uncomputed > 1), key=_order, default=None)
        while place < len(self._waiting) and len(self._running) < self._max_num_seqs:
            sequence = self._waiting[place]
            if self._behind and sequence not in self._behind:
                self._is_full = True
                break
            if self._pool.prefix_cache:
                self._name_blocks(sequence)
                if self._is_worth_waiting(sequence, first):
                    place += 1
                    continue
            found = self._pool.find(_usable_keys(sequence), sequence.token_ids)
            missing = blocks_for(sequence.num_tokens + 1) - len(found)
            if missing > self._pool.num_free - self._pool.num_idle(found):
                self._is_full = True
                break
            del self._waiting[place]
            self._start(sequence, found, now_s)
            first = sequence if first is None else min(first, sequence, key=_order)

    def _is_worth_waiting(self, sequence: Sequence, first: Sequence | None) -> bool:
        """Whether blocks it begins with are being computed, no later than it could itself.

        `first` is the prompt that gets half of a step.
        """
        if not self._coming:
            return False
        keys = reversed(_usable_keys(sequence))
        owner = next((self._coming[key] for key in keys if key in self._coming), None)
        if owner is None or owner is first:
            return owner is not None
        # The fewest tokens left go first. What the owner has computed, both have.
        mine, others = (sequence.priority, sequence.num_tokens), (owner.priority, owner.num_tokens)
        return others <= mine

    def _start(self, sequence: Sequence, found: list[int], now_s: float) -> None:
        self._pool.share(found)
        missing = blocks_for(sequence.num_tokens) - len(found)
        sequence.blocks = found + self._pool.take(missing)
        sequence.num_registered = len(found)
        sequence.num_computed = len(found) * BLOCK_SIZE
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed
            sequence.started_s = now_s
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self.num_cached_tokens += sequence.num_computed
        for key in sequence.block_keys[len(found) :]:
            self._coming.setdefault(key, sequence)
        self._running[sequence] = None

    def _name_blocks(self, sequence: Sequence) -> None:
        self._pool.extend_keys(sequence.block_keys, sequence.token_ids, sequence.cache_salt)

    def _register(self, sequence: Sequence) -> None:
        """Its full blocks, of tokens that are known, can be found from now on."""
        full = min(sequence.num_computed, len(sequence.token_ids)) // BLOCK_SIZE
        if full <= sequence.num_registered or not self._pool.prefix_cache:
            return
        self._name_blocks(sequence)
        for place in range(sequence.num_registered, full):
            key, start = sequence.block_keys[place], place * BLOCK_SIZE
            token_ids = sequence.token_ids[start : start + BLOCK_SIZE]
            root = self._pool.root(sequence.cache_salt)
            parent = sequence.block_keys[place - 1] if place else root
            self._pool.register(sequence.blocks[place], key, token_ids, parent)
            if self._coming.get(key) is sequence:
                del self._coming[key]
        sequence.num_registered = full

    def check(self) -> None:
        """Assert that the books are right, between steps; for tests."""
        self._pool.check(sequence.blocks for sequence in self._running)
        assert self._waiting == sorted(self._waiting, key=self._turn)
        assert not any(s.blocks or s.num_computed or s in self._running for s in self._waiting)
        assert self._behind <= {*self._waiting, *self._running}
        assert set(self._coming.values()) <= set(self._running)


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.arrival


def _ending(sequence: Sequence) -> tuple[int, int, int]:
    """The order in which sequences would end, if all ran."""
    return sequence.priority, sequence.num_left, sequence.arrival


def _usable_keys(sequence: Sequence) -> list[bytes]:
    """Names of the blocks that it may find in the cache: one token is left to be computed.

    Tokens whose log-probabilities are wanted are computed too, for those of the tokens after them.
    """
    most = sequence.num_tokens - 1
    if sequence.wants_scores:
        most = min(most, sequence.num_scored - 1)
    return sequence.block_keys[: most // BLOCK_SIZE]


def _shares(prompts: SequenceOf[Sequence], budget: int) -> list[Chunk]:
    """Half of the budget for the first in order, the rest for the fewest tokens left."""
    first = min(prompts, key=_order)
    by_size = sorted(prompts, key=lambda s: (s.priority, s.num_uncomputed, s.arrival))
    counts: dict[Sequence, int] = {}
    scores = MOST_SCORED
    for prompt, most in ((first, (budget + 1) // 2), *((s, budget) for s in by_size)):
        given = counts.get(prompt, 0)
        more = min(prompt.num_uncomputed - given, most, budget)
        if prompt.wants_scores:
            more = min(more, scores)
            scores -= more
        if more > 0:
            counts[prompt] = given + more
            budget -= more
    return [Chunk(s, s.num_computed, s.num_computed + count) for s, count in counts.items()]
