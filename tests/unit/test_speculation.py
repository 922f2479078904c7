"""Guesses change how fast tokens come, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from engines import run_to_end, start_engine
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import tiny_backend

from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineStartError
from qwell.runtime.loader import load_model
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Sequence
from qwell.runtime.speculation import MOST_DRAFTS, Speculator, kept_ids
from qwell.runtime.thinking import Thinking

REPETITIVE = [7, 8, 9, 10, 11] * 8
REQUESTS = {
    "greedy": (REPETITIVE, SamplingParams(max_tokens=60, temperature=0.0)),
    "sampled": (REPETITIVE, SamplingParams(max_tokens=60, temperature=0.7, seed=3)),
    "peaked": ([5, 3, 8, 13], SamplingParams(max_tokens=60, temperature=0.05, seed=4)),
    "banned": (REPETITIVE, SamplingParams(max_tokens=40, temperature=0.0, bad_token_ids=(8,))),
    "penalised": (
        REPETITIVE,
        SamplingParams(max_tokens=40, temperature=0.0, repetition_penalty=1.3),
    ),
    "scored": (REPETITIVE, SamplingParams(max_tokens=20, temperature=0.0, logprobs=2)),
    "thinking": (
        REPETITIVE,
        SamplingParams(
            max_tokens=40,
            temperature=0.0,
            thinking=Thinking(1, 2, opened=True, budget=17, close_ids=(3, 2, 4)),
        ),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, "qwen3")
    return path


class Oracle:
    """Guesses from texts that are known; every `wrong`-th token of a text is not."""

    def __init__(self, texts: Mapping[str, list[int]], wrong: int) -> None:
        self._texts = texts
        self._wrong = wrong

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        return {s: self._guess(s, count) for s, count in wanted.items()}

    def forget(self, sequence: Sequence) -> None:
        pass

    def _guess(self, sequence: Sequence, count: int) -> list[int]:
        text, place = self._texts[sequence.request_id], sequence.num_generated
        guess = text[place : place + count]
        return [i if (place + k) % self._wrong else i + 1 for k, i in enumerate(guess)]


def plain(folder: Path) -> dict[str, list[int]]:
    engine = start_engine(folder, speculation=False)
    return all_requests(engine)


def all_requests(engine: Engine) -> dict[str, list[int]]:
    for request_id, (prompt, params) in REQUESTS.items():
        engine.add(request_id, prompt, params)
    return run_to_end(engine)


def guessing(folder: Path, drafter: Oracle | None = None, **options: object) -> Engine:
    settled = {"device": "cpu", "weight_cache": False, **options}
    engine_options = EngineOptions(model=str(folder), **settled)
    ticks = iter(range(10**9))
    # By this clock a step takes as long with guesses as without.
    return Engine(
        load_model(engine_options), engine_options, drafter=drafter, clock=lambda: next(ticks)
    )


@pytest.mark.parametrize("wrong", [1, 2, 3, 7, 10**9])
def test_tokens_are_those_of_plain_decoding_whatever_is_guessed(folder: Path, wrong: int) -> None:
    texts = plain(folder)
    engine = guessing(folder, Oracle(texts, wrong))
    assert all_requests(engine) == texts
    stats = engine.stats
    assert stats.drafted_tokens > 0
    assert (stats.accepted_tokens > 0) == (wrong > 1)
    assert stats.blocks_used == 0


def test_right_guesses_save_steps(folder: Path) -> None:
    texts = plain(folder)
    engine = guessing(folder, Oracle(texts, 10**9))
    engine.add("greedy", *REQUESTS["greedy"])
    assert run_to_end(engine)["greedy"] == texts["greedy"]
    assert engine.stats.steps < 20
    assert engine.stats.accepted_tokens > 40


@pytest.mark.parametrize("options", [{}, {"eager": True}, {"kv_cache_tokens": 256}])
def test_lookups_leave_the_text_alone(folder: Path, options: dict[str, object]) -> None:
    assert all_requests(guessing(folder, **options)) == plain(folder)


def test_an_end_id_inside_a_guess_ends_the_text(folder: Path) -> None:
    text = plain(folder)["greedy"]
    eos = text[17]
    engine = guessing(folder, Oracle({"greedy": text}, 10**9), eos_token_ids=(eos,))
    engine.add("greedy", *REQUESTS["greedy"])
    assert run_to_end(engine)["greedy"] == text[: text.index(eos) + 1]
    assert engine.num_free_blocks == engine.stats.blocks_total


def test_a_prefix_of_a_text_with_wrong_guesses_is_found_right(folder: Path) -> None:
    text = plain(folder)["greedy"]
    engine = guessing(folder, Oracle({"greedy": text, "again": text[40:]}, 3))
    engine.add("greedy", *REQUESTS["greedy"])
    run_to_end(engine)
    engine.add("again", REPETITIVE + text[:40], SamplingParams(max_tokens=20, temperature=0.0))
    assert run_to_end(engine)["again"] == text[40:]
    assert engine.stats.prefix_hit_tokens >= 64


@pytest.mark.parametrize("count", [23, 24, 25, 40])
def test_what_right_guesses_filled_is_found_after_the_end(folder: Path, count: int) -> None:
    text = plain(folder)["greedy"][:count]
    engine = guessing(folder, Oracle({"first": text}, 10**9))
    engine.add("first", REPETITIVE, SamplingParams(max_tokens=count, temperature=0.0))
    assert run_to_end(engine)["first"] == text
    engine.add("next", REPETITIVE + text + [3], SamplingParams(max_tokens=1, temperature=0.0))
    run_to_end(engine)
    # All but the last token, which was drawn and never computed.
    assert engine.stats.prefix_hit_tokens == (len(REPETITIVE) + count - 1) // 16 * 16


def test_the_model_itself_as_draft_model_is_always_right(folder: Path) -> None:
    texts = plain(folder)
    engine = start_engine(folder, draft_model=str(folder))
    assert all_requests(engine) == texts
    engine = start_engine(folder, draft_model=str(folder))
    engine.add("greedy", *REQUESTS["greedy"])
    assert run_to_end(engine)["greedy"] == texts["greedy"]
    stats = engine.stats
    assert stats.drafted_tokens == stats.accepted_tokens


def test_another_draft_model_leaves_the_text_alone(folder: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "qwen2", seed=5)
    assert all_requests(start_engine(folder, draft_model=str(tmp_path))) == plain(folder)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_kept_ids_are_those_up_to_the_first_wrong_guess(drawn, data):
    draft = data.draw(st.lists(st.integers(0, 3), min_size=len(drawn) - 1, max_size=len(drawn) - 1))
    kept = list(kept_ids(drawn, draft))
    assert kept == drawn[: len(kept)]
    assert draft[: len(kept) - 1] == drawn[: len(kept) - 1]
    assert len(kept) == len(drawn) or draft[len(kept) - 1] != drawn[len(kept) - 1]


class Parrot:
    """Guesses as many tokens as are wanted."""

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        return {sequence: [1] * count for sequence, count in wanted.items()}

    def forget(self, sequence: Sequence) -> None:
        pass


def sequence(name: str = "a") -> Sequence:
    return Sequence(name, [1, 2, 3], 3, SamplingParams(max_tokens=10_000), seed=0)


def drafted(speculator: Speculator, one: Sequence, token_s: float) -> int:
    drafts = speculator.propose([one], step_s=1.0, token_s=token_s)
    return len(drafts.get(one, ()))


def test_refused_guesses_become_rare_and_come_back() -> None:
    speculator, one = Speculator(Parrot(), lambda: 0.0), sequence()
    for _ in range(20):
        count = drafted(speculator, one, 0.1)
        if count:
            speculator.verified(one, drafted=count, accepted=0)
    assert drafted(speculator, one, 0.3) == 0
    waits = next(i for i in range(300) if drafted(speculator, one, 0.3))
    assert waits > 5


@pytest.mark.parametrize("sequences", [1, 8])
@pytest.mark.parametrize("token_s", [0.001, 0.02, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.65, 1.0])
def test_guesses_that_are_all_refused_cost_next_to_nothing(token_s: float, sequences: int) -> None:
    speculator = Speculator(Parrot(), lambda: 0.0)
    running = [sequence(str(i)) for i in range(sequences)]
    lost_s = 0.0
    for _ in range(64):
        drafts = speculator.propose(running, step_s=1.0, token_s=token_s)
        for one, draft in drafts.items():
            speculator.verified(one, drafted=len(draft), accepted=0)
            lost_s += token_s * len(draft)
    assert lost_s < 0.03 * 64


def test_right_guesses_grow_until_they_cost_more_than_they_bring() -> None:
    speculator, one = Speculator(Parrot(), lambda: 0.0), sequence()
    for _ in range(20):
        count = drafted(speculator, one, 0.1)
        speculator.verified(one, drafted=count, accepted=count)
    assert drafted(speculator, one, 0.1) == MOST_DRAFTS
    assert drafted(speculator, one, 1.0) == 0


def test_slow_guessing_is_part_of_the_price() -> None:
    ticks = iter(range(1000))
    speculator, one = Speculator(Parrot(), lambda: 100.0 * next(ticks)), sequence()
    assert drafted(speculator, one, 0.0) > 0
    assert drafted(speculator, one, 0.0) == 0


def test_nothing_is_guessed_past_the_end() -> None:
    speculator = Speculator(Parrot(), lambda: 0.0)
    one = Sequence("a", [1, 2, 3], 2, SamplingParams(max_tokens=3), seed=0)
    assert drafted(speculator, one, 0.0) == 1
    last = Sequence("b", [1, 2, 3, 4], 2, SamplingParams(max_tokens=3), seed=0)
    assert drafted(speculator, last, 0.0) == 0


def test_a_draft_model_of_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    merges = [(b"a", b"b"), (b"c", b"d")]
    for name, which in (("target", merges), ("same", merges), ("other", merges[::-1])):
        shutil.copytree(folder, tmp_path / name)
        tiny_backend(which).save(str(tmp_path / name / "tokenizer.json"))
    start_engine(tmp_path / "target", draft_model=str(tmp_path / "same"))
    with pytest.raises(EngineStartError, match="another tokenizer"):
        start_engine(tmp_path / "target", draft_model=str(tmp_path / "other"))
