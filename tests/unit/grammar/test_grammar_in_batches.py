"""Grammars beside other requests, guesses and thoughts: they change no token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import pytest
import torch
from grammars import AB, TOKENIZER, VOCAB, run
from tiny_tokenizers import IM_START, TOOL_CALL

from qwell.runtime.batch import Layout
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.grammar import Grammar
from qwell.runtime.loader import LoadedModel, load_model
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Sequence
from qwell.runtime.thinking import Thinking


def mixed() -> dict[str, SamplingParams]:
    """Requests with and without grammars, greedy and not, that run side by side."""
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 10}'
    words = Grammar("regex", "(abc|xyz){12,20}")
    grammars = (None, AB, Grammar("json_schema", schema), words)
    held_back = SamplingParams(
        max_tokens=60,
        temperature=1.0,
        seed=3,
        grammar=Grammar("regex", "(aba){6,9}"),
        min_tokens=12,
        stop_token_ids=(ord("a"), 256, 257),
    )
    return {"held": held_back} | {
        f"{i}": SamplingParams(
            max_tokens=60,
            temperature=0.0 if i % 3 == 0 else 1.0,
            repetition_penalty=1.2 if i % 5 == 0 else 1.0,
            seed=i,
            grammar=grammars[i % len(grammars)],
        )
        for i in range(12)
    }


def test_tokens_do_not_depend_on_neighbours_preemption_or_overlap(
    model: LoadedModel, options: EngineOptions, engine: Engine
) -> None:
    alone = {name: run(engine, {name: params}).ids[name] for name, params in mixed().items()}
    assert run(engine, mixed()).ids == alone
    overlapping = Engine(model, options, overlap=True)
    assert run(overlapping, mixed()).ids == alone
    # Nor are they late: ids of the last step are waited for while the next one is computed.
    before = overlapping.stats.steps
    run(overlapping, mixed())
    assert overlapping.stats.steps - before <= max(map(len, alone.values())) + 2


class Recalls:
    """Guesses what an earlier run has given; every `wrong`-th token of a text otherwise."""

    def __init__(self, texts: dict[str, list[int]], wrong: int) -> None:
        self._texts = texts
        self._wrong = wrong

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        drafts = {}
        for sequence, count in wanted.items():
            if sequence.request_id not in self._texts:
                continue
            text, place = self._texts[sequence.request_id], sequence.num_generated
            guess = enumerate(text[place : place + count], place + 1)
            drafts[sequence] = [i if at % self._wrong else (i + 1) % VOCAB for at, i in guess]
        return drafts

    def forget(self, sequence: Sequence) -> None:
        pass


@pytest.mark.parametrize("wrong", [3, 5, 1000])
def test_guesses_change_no_token(
    model: LoadedModel, options: EngineOptions, engine: Engine, wrong: int
) -> None:
    stuck = SamplingParams(max_tokens=20, seed=1, bad_token_ids=(ord("x"),))
    requests = {
        **mixed(),
        "stuck": replace(stuck, grammar=Grammar("regex", "[ab]{6}x")),
        "complete": replace(stuck, grammar=Grammar("regex", "[ab]{8}"), ignore_eos=True),
    }
    plain = run(engine, requests)
    seconds = 0.0
    guessing = Engine(model, options, drafter=Recalls(plain.ids, wrong), clock=lambda: seconds)
    forward = guessing.forward

    def timed(layout: Layout) -> torch.Tensor:
        """By this clock a step takes as long with guesses as without."""
        nonlocal seconds
        seconds += 1.0
        return forward(layout)

    guessing.forward = timed
    run(guessing, {"first": stuck})
    for name in ("1", "2", "3", "6", "7", "held", "stuck", "complete"):
        # Few enough beside each other that guesses pay.
        guessed = run(guessing, {other: requests[other] for other in {name, "0"}})
        assert guessed.ids == {other: plain.ids[other] for other in guessed.ids}
        assert guessed.reasons.get(name) == plain.reasons.get(name)
        assert guessed.errors.get(name) == plain.errors.get(name)
    assert guessing.stats.accepted_tokens > 20


def test_preempted_sequences_keep_their_place_in_the_grammar(
    options: EngineOptions, engine: Engine
) -> None:
    small = msgspec.structs.replace(options, kv_cache_tokens=160, max_model_len=100)
    for overlap in (False, True):
        tight = Engine(load_model(small), small, overlap=overlap)
        assert run(tight, mixed()).ids == run(engine, mixed()).ids
        assert tight.stats.preemptions > 0


# Tokens of the tiny tokenizer that nothing else needs.
THINK = Thinking(IM_START, TOOL_CALL, True, None, (10, TOOL_CALL, 10))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_grammar_is_for_what_follows_the_thoughts(
    model: LoadedModel, options: EngineOptions, overlap: bool
) -> None:
    running = Engine(model, options, overlap=overlap)
    for budget, seed in ((5, 1), (40, 2), (None, 3)):
        params = SamplingParams(
            max_tokens=500,
            temperature=1.0,
            seed=seed,
            grammar=AB,
            thinking=replace(THINK, budget=budget),
        )
        answers = run(running, {"one": params})
        ids = answers.ids["one"]
        end = ids.index(TOOL_CALL)
        assert budget is None or end <= budget + 1
        assert ids[end + 1] == 10
        assert re.fullmatch("[ab]{3,5}", TOKENIZER.decode(ids[end + 2 :]))
        assert answers.reasons["one"] == "stop"


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_thoughts_may_come_first_where_the_prompt_has_not_opened_them(
    engine: Engine, bias: float
) -> None:
    params = SamplingParams(
        max_tokens=60,
        temperature=1.0,
        seed=1,
        logit_bias={IM_START: bias},
        grammar=AB,
        thinking=replace(THINK, opened=False, budget=3),
    )
    ids = run(engine, {"one": params}).ids["one"]
    assert (ids[0] == IM_START) is (bias > 0)
    answer = ids[ids.index(TOOL_CALL) + 2 :] if bias > 0 else ids
    assert re.fullmatch("[ab]{3,5}", TOKENIZER.decode(answer))
