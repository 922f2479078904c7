"""A block of thoughts before the answer: its budget, and the grammar of what follows it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from token_model import token_model
from torch import Tensor

from qwell.kernels.reference.sample import sample as reference_sample
from qwell.runtime.batch import Batch
from qwell.runtime.constraint import Bits, Constraint
from qwell.runtime.constraints import Constraints
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.thinking import Thinking

EOS, OPEN, CLOSE, BREAK = 0, 9, 10, 11
ALWAYS_OPEN = {OPEN: 100.0, CLOSE: -100.0, EOS: -100.0}
NEVER_CLOSED = {OPEN: -100.0, CLOSE: -100.0, EOS: -100.0}


def thinking(budget: int | None, opened: bool = True) -> Thinking:
    return Thinking(OPEN, CLOSE, opened, budget, (BREAK, CLOSE, BREAK))


def generate(
    params: SamplingParams,
    *,
    overlap: bool = False,
    beside: SamplingParams | None = None,
    sample: Callable[..., Tensor] | None = None,
) -> list[int]:
    options = EngineOptions(model="", eager=True, eos_token_ids=(EOS,))
    engine = Engine(token_model(16, sample), options, overlap=overlap)
    engine.add("it", [5, 3, OPEN], params)
    if beside is not None:
        engine.add("beside", [1, 2], beside)
    ids: list[int] = []
    while engine.has_work:
        for output in engine.step():
            if output.request_id == "it":
                assert output.error is None
                ids += output.token_ids
    return ids


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_spent_budget_closes_the_block_and_the_text_goes_on(
    budget: int, temperature: float, overlap: bool
) -> None:
    params = SamplingParams(
        max_tokens=14,
        temperature=temperature,
        seed=3,
        logit_bias=NEVER_CLOSED,
        thinking=thinking(budget),
    )
    ids = generate(params, overlap=overlap)
    free = generate(replace(params, thinking=None))
    assert ids[:budget] == free[:budget]
    assert ids[budget : budget + 3] == [BREAK, CLOSE, BREAK]
    assert len(ids) == 14
    assert CLOSE not in ids[budget + 3 :]


def test_a_mark_that_is_a_stop_id_ends_nothing_before_min_tokens() -> None:
    params = SamplingParams(
        max_tokens=14,
        temperature=0.0,
        logit_bias=NEVER_CLOSED,
        stop_token_ids=(CLOSE,),
        thinking=thinking(2),
    )
    assert generate(params)[2:] == [BREAK, CLOSE]
    assert generate(replace(params, min_tokens=3))[2:] == [BREAK, CLOSE]
    for overlap in (False, True):
        longer = generate(replace(params, min_tokens=8), overlap=overlap)
        assert longer[2:5] == [BREAK, CLOSE, BREAK]
        assert len(longer) > 8


def test_a_block_that_the_model_opens_has_the_same_budget() -> None:
    params = SamplingParams(
        max_tokens=10, temperature=0.0, logit_bias=ALWAYS_OPEN, thinking=thinking(2, opened=False)
    )
    assert generate(params)[:6] == [OPEN, OPEN, OPEN, BREAK, CLOSE, BREAK]


def test_a_text_that_does_not_think_has_no_budget() -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=2, logit_bias=NEVER_CLOSED)
    free = generate(params)
    assert generate(replace(params, thinking=thinking(2, opened=False))) == free


def test_a_block_that_the_model_closes_in_time_is_left_alone() -> None:
    for seed in range(8):
        params = SamplingParams(max_tokens=20, temperature=1.0, seed=seed, ignore_eos=True)
        free = generate(params)
        if CLOSE in free:
            budget = free.index(CLOSE) + 1
            assert generate(replace(params, thinking=thinking(budget))) == free


@pytest.mark.parametrize("overlap", [False, True])
def test_a_budget_costs_nothing_until_it_is_spent(overlap: bool) -> None:
    steps = []

    def sample(logits: Tensor, **parameters: Tensor) -> Tensor:
        steps.append(len(logits))
        return reference_sample(logits, **parameters)

    free = SamplingParams(max_tokens=30, temperature=0.0, logit_bias=NEVER_CLOSED)
    params = replace(free, thinking=thinking(25))
    generate(params, overlap=overlap, sample=sample)
    limited = len(steps)
    steps.clear()
    generate(free, overlap=overlap, sample=sample)
    assert limited == len(steps) == 30


def test_tokens_do_not_depend_on_what_runs_beside() -> None:
    params = SamplingParams(
        max_tokens=14, temperature=1.0, seed=3, logit_bias=NEVER_CLOSED, thinking=thinking(4)
    )
    beside = replace(params, seed=9, thinking=thinking(7))
    for overlap in (False, True):
        assert generate(params, overlap=overlap, beside=beside) == generate(params)


def test_masks_are_made_while_the_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = threading.Event()
    fill = Constraints._fill

    def noted(constraints: Constraints, of: Sequence[Constraint]) -> Bits:
        bits = fill(constraints, of)
        made.set()
        return bits

    monkeypatch.setattr(Constraints, "_fill", noted)
    engine = Engine(token_model(16), EngineOptions(model="", eager=True))
    forward = engine.forward

    def patient(batch: Batch) -> Tensor:
        assert made.wait(10), "no mask is made while the model computes"
        return forward(batch)

    engine.forward = patient
    engine.add("it", [5, 3, OPEN], SamplingParams(max_tokens=3, thinking=thinking(0)))
    assert [output.token_ids for _ in range(3) for output in engine.step()] == [
        [BREAK],
        [CLOSE],
        [BREAK],
    ]


def test_banned_closing_ids_end_the_request_with_an_error() -> None:
    options = EngineOptions(model="", eager=True, eos_token_ids=(EOS,))
    engine = Engine(token_model(16), options)
    params = SamplingParams(max_tokens=9, bad_token_ids=(BREAK,), thinking=thinking(0))
    engine.add("it", [5, 3, OPEN], params)
    outputs = [output for _ in range(3) for output in engine.step()]
    assert [output.error is not None for output in outputs] == [True]
    assert not engine.has_work
