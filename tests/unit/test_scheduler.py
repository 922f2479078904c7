"""What the scheduler picks, step by step; test_scheduler_load.py has random loads."""

from __future__ import annotations

from qwell.runtime.block_pool import BlockPool
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.scheduler import MOST_SCORED, Scheduler
from qwell.runtime.sequence import Sequence


def sequence(
    name: str,
    prompt: int | list[int],
    max_tokens: int = 8,
    priority: int = 0,
    salt: str = "",
    prompt_logprobs: int | None = None,
) -> Sequence:
    """A sequence; prompts given by their length have nothing in common."""
    ids = [ord(name[0]) * 1000 + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)
    return Sequence(name, list(ids), len(ids), params, 0, priority=priority, cache_salt=salt)


def run(
    scheduler: Scheduler, steps: int, prefill_tokens: int | None = None
) -> list[list[tuple[str, int, int]]]:
    history = []
    for _ in range(steps):
        chunks = scheduler.schedule(prefill_tokens)
        scheduler.computed(chunks)
        for chunk in chunks:
            if chunk.completes:
                chunk.sequence.token_ids.append(0)
        scheduler.check()
        history.append([(c.sequence.request_id, c.start, c.end) for c in chunks])
    return history


def started(num_blocks: int, *sequences: Sequence, **limits: int) -> Scheduler:
    limits = {"max_batch_tokens": 64, "max_num_seqs": 8, **limits}
    scheduler = Scheduler(BlockPool(num_blocks), **limits)
    for each in sequences:
        scheduler.add(each)
    return scheduler


def test_prompts_run_in_chunks_beside_sequences_that_decode() -> None:
    scheduler = started(64, sequence("short", 4), sequence("long", 20), max_batch_tokens=10)
    assert run(scheduler, 4) == [
        [("short", 0, 4), ("long", 0, 6)],
        [("short", 4, 5), ("long", 6, 15)],
        [("short", 5, 6), ("long", 15, 20)],
        [("short", 6, 7), ("long", 20, 21)],
    ]


def test_steps_that_decode_have_a_limit_for_prompts_and_others_have_not() -> None:
    scheduler = started(64, sequence("a", 4), sequence("b", 60), max_batch_tokens=40)
    assert run(scheduler, 3, prefill_tokens=8) == [
        [("a", 0, 4), ("b", 0, 36)],
        [("a", 4, 5), ("b", 36, 44)],
        [("a", 5, 6), ("b", 44, 52)],
    ]


def test_the_oldest_prompt_gets_half_and_the_shortest_the_rest() -> None:
    prompts = [sequence("old", 100), sequence("mid", 60), sequence("tiny", 5)]
    scheduler = started(64, *prompts, max_batch_tokens=21)
    assert run(scheduler, 2) == [
        [("old", 0, 11), ("tiny", 0, 5), ("mid", 0, 5)],
        [("tiny", 5, 6), ("old", 11, 21), ("mid", 5, 15)],
    ]


def test_only_so_many_prompt_tokens_are_scored_in_a_step() -> None:
    most = MOST_SCORED
    scheduler = started(
        999,
        sequence("a", most + 90, prompt_logprobs=0),
        sequence("b", most, prompt_logprobs=0),
        sequence("plain", 600),
        max_batch_tokens=8192,
    )
    assert run(scheduler, 3) == [
        [("a", 0, most), ("plain", 0, 600)],
        [("plain", 600, 601), ("a", most, most + 90), ("b", 0, most - 90)],
        [("a", most + 90, most + 91), ("plain", 601, 602), ("b", most - 90, most)],
    ]


def test_lower_priorities_run_first() -> None:
    sequences = [sequence("a", 8, priority=1), sequence("b", 8), sequence("c", 8, priority=-1)]
    scheduler = started(64, *sequences, max_num_seqs=1)
    for name in ("c", "b", "a"):
        [[(picked, _, _)]] = run(scheduler, 1)
        assert picked == name
        scheduler.remove(next(s for s in sequences if s.request_id == name))


def test_the_one_that_can_end_first_is_kept_when_blocks_run_out() -> None:
    old, young = sequence("old", 31, 30), sequence("young", 30, 20)
    scheduler = started(4, old, young)
    # Both fill two blocks; the third block of the young one is the old one's.
    assert run(scheduler, 3) == [
        [("old", 0, 31), ("young", 0, 30)],
        [("old", 31, 32), ("young", 30, 31)],
        [("young", 31, 32)],
    ]
    assert (old.num_computed, old.blocks) == (0, [])
    assert scheduler.num_preemptions == 1
    scheduler.add(sequence("new", 1))
    assert run(scheduler, 1) == [[("young", 32, 33)]], "nobody goes before a preempted one"
    scheduler.remove(young)
    # The first block had not been needed by anyone else, and holds the same tokens.
    assert run(scheduler, 2) == [
        [("old", 16, 33)],
        [("old", 33, 34), ("new", 0, 1)],
    ]


def test_a_waiting_sequence_is_admitted_only_with_room_for_its_prompt() -> None:
    first = sequence("first", 40)
    scheduler = started(4, first, sequence("second", 20))
    assert run(scheduler, 1) == [[("first", 0, 40)]]
    scheduler.remove(first)
    assert run(scheduler, 1) == [[("second", 0, 20)]]


def test_a_prompt_that_was_computed_before_is_not_computed_again() -> None:
    ids = list(range(100, 140))
    first = sequence("first", ids)
    scheduler = started(16, first, max_batch_tokens=512)
    run(scheduler, 3)
    again, whole, other = sequence("b", ids), sequence("c", ids[:32]), sequence("d", ids[1:])
    for each in (again, whole, other, sequence("e", ids, salt="mine")):
        scheduler.add(each)
    assert run(scheduler, 1) == [
        [
            ("first", 42, 43),
            # At least one token is left to compute, whose logits give the next.
            *[("b", 32, 40), ("c", 16, 32), ("d", 0, 39), ("e", 0, 40)],
        ]
    ]
    assert (again.num_cached_tokens, whole.num_cached_tokens) == (32, 16)
    assert scheduler.num_cached_tokens == 48


def test_generated_tokens_are_found_too() -> None:
    first = sequence("first", list(range(30)), 20)
    scheduler = started(16, first)
    run(scheduler, 10)
    scheduler.remove(first)
    scheduler.add(sequence("turn", [*first.token_ids, 5, 5, 5]))
    assert run(scheduler, 1) == [[("turn", 32, 43)]]


def test_equal_prompts_at_once_are_computed_once() -> None:
    ids = list(range(100, 140))
    choices = [sequence(name, ids) for name in "abc"]
    scheduler = started(16, *choices, max_batch_tokens=30)
    assert run(scheduler, 3) == [
        [("a", 0, 30)],
        [("a", 30, 40)],
        [("a", 40, 41), ("b", 32, 40), ("c", 32, 40)],
    ]


def test_a_prompt_does_not_wait_for_one_that_is_served_later() -> None:
    ids = list(range(100, 140))
    oldest, long = sequence("old", 200), sequence("long", ids + [7] * 200)
    scheduler = started(64, oldest, long, max_batch_tokens=40)
    run(scheduler, 1)
    scheduler.add(sequence("short", [*ids, 8]))
    assert run(scheduler, 1) == [[("old", 40, 60), ("short", 0, 20)]]


def test_others_need_not_wait_when_the_one_they_wait_for_is_gone() -> None:
    ids = list(range(100, 140))
    first = sequence("a", ids)
    scheduler = started(16, first, sequence("b", ids), max_batch_tokens=20)
    assert run(scheduler, 1) == [[("a", 0, 20)]]
    scheduler.remove(first)
    assert run(scheduler, 1) == [[("b", 16, 36)]]
