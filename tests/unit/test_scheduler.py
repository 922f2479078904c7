"""The scheduler over random loads: no block has two owners, nobody starves, all ends."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwell.runtime.kv_cache import BLOCK_SIZE, BlockPool, blocks_for
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.scheduler import Chunk, Scheduler, Sequence


def sequence(name: str, prompt: int, max_tokens: int = 8) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens)
    return Sequence(name, list(range(prompt)), prompt, params, seed=0)


def check_step(chunks: list[Chunk], pool: BlockPool, known: list[Sequence], budget: int) -> None:
    assert sum(chunk.end - chunk.start for chunk in chunks) <= budget
    assert len({chunk.sequence.request_id for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        assert chunk.start == chunk.sequence.num_computed < chunk.end
        assert chunk.end <= len(chunk.sequence.token_ids)
        assert len(chunk.sequence.blocks) == blocks_for(chunk.end)
    owners = Counter(block for seq in known for block in seq.blocks)
    assert all(count == 1 for count in owners.values())
    assert len(owners) + pool.num_free == pool.num_blocks


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(0, 30)),
        min_size=1,
        max_size=12,
    ),
    num_blocks=st.integers(9, 30),
    budget=st.integers(1, 64),
    max_num_seqs=st.integers(1, 8),
    aborted=st.sets(st.integers(0, 11), max_size=3),
)
def test_every_request_ends_and_gives_its_blocks_back(
    requests: list[tuple[int, int, int]],
    num_blocks: int,
    budget: int,
    max_num_seqs: int,
    aborted: set[int],
) -> None:
    pool = BlockPool(num_blocks)
    scheduler = Scheduler(pool, max_batch_tokens=budget, max_num_seqs=max_num_seqs)
    pending = [
        (arrival, sequence(str(i), prompt, max_tokens))
        for i, (prompt, max_tokens, arrival) in enumerate(requests)
        if prompt + max_tokens <= num_blocks * BLOCK_SIZE
    ]
    known = [seq for _, seq in pending]
    live: list[Sequence] = []
    work = sum(len(seq.token_ids) + seq.params.max_tokens for seq in known)
    # Preemption computes tokens again, but only ever after the oldest has gone on.
    for step in range(40 + 60 * work):
        for arrival, seq in pending:
            if arrival == step:
                scheduler.add(seq)
                live.append(seq)
        for seq in list(live):
            if step == 7 and int(seq.request_id) in aborted:
                scheduler.remove(seq)
                live.remove(seq)
        chunks = scheduler.schedule()
        check_step(chunks, pool, known, budget)
        assert bool(chunks) == bool(live), "work waits, but the step is empty"
        scheduler.computed(chunks)
        for chunk in chunks:
            if chunk.completes:
                seq = chunk.sequence
                seq.token_ids.append(0)
                if seq.num_generated == seq.params.max_tokens:
                    scheduler.remove(seq)
                    live.remove(seq)
        if not live and all(arrival <= step for arrival, _ in pending):
            break
    assert not live
    assert not scheduler.has_work
    assert pool.num_free == num_blocks


def run(scheduler: Scheduler, steps: int) -> list[list[tuple[str, int, int]]]:
    history = []
    for _ in range(steps):
        chunks = scheduler.schedule()
        scheduler.computed(chunks)
        for chunk in chunks:
            if chunk.completes:
                chunk.sequence.token_ids.append(0)
        history.append([(c.sequence.request_id, c.start, c.end) for c in chunks])
    return history


def test_prompts_run_in_chunks_beside_sequences_that_decode() -> None:
    scheduler = Scheduler(BlockPool(64), max_batch_tokens=10, max_num_seqs=4)
    scheduler.add(sequence("short", 4))
    scheduler.add(sequence("long", 20))
    assert run(scheduler, 4) == [
        [("short", 0, 4), ("long", 0, 6)],
        [("short", 4, 5), ("long", 6, 15)],
        [("short", 5, 6), ("long", 15, 20)],
        [("short", 6, 7), ("long", 20, 21)],
    ]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    scheduler = Scheduler(BlockPool(4), max_batch_tokens=64, max_num_seqs=4)
    old, young = sequence("old", 31, 40), sequence("young", 30, 40)
    scheduler.add(old)
    scheduler.add(young)
    # Both fill two blocks; the third block of the old one is the young one's.
    assert run(scheduler, 3) == [
        [("old", 0, 31), ("young", 0, 30)],
        [("old", 31, 32), ("young", 30, 31)],
        [("old", 32, 33)],
    ]
    assert (young.num_computed, young.blocks) == (0, [])
    scheduler.remove(old)
    assert run(scheduler, 1) == [[("young", 0, 32)]]


def test_a_waiting_sequence_is_admitted_only_with_room_for_its_prompt() -> None:
    pool = BlockPool(4)
    scheduler = Scheduler(pool, max_batch_tokens=64, max_num_seqs=4)
    first = sequence("first", 40)
    scheduler.add(first)
    scheduler.add(sequence("second", 20))
    assert run(scheduler, 1) == [[("first", 0, 40)]]
    scheduler.remove(first)
    assert run(scheduler, 1) == [[("second", 0, 20)]]


def test_a_pool_does_not_hand_out_more_than_it_has() -> None:
    pool = BlockPool(2)
    taken = pool.take(2)
    with pytest.raises(ValueError, match="1 blocks wanted, 0 free"):
        pool.take(1)
    pool.give_back(taken)
    assert (pool.num_free, taken) == (2, [])
