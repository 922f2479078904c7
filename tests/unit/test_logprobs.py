"""Log-probabilities that an engine reports: those of its model, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from token_model import VOCAB, token_model

from qwell import LLM, SamplingParams
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import RequestError
from qwell.runtime.llm import Completion
from qwell.runtime.messages import TokenLogprob, TokenOutput

PROMPT = [(7 * i) % 199 for i in range(37)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, "qwen3")
    return path


def check(llm: LLM, token_ids: list[int], first: int, found: list[Any], top: int) -> None:
    """`found` are those of token_ids[first:], in fp32 rounding of the logits' softmax."""
    expected = llm.logits(token_ids).double().log_softmax(dim=1)
    assert len(found) == len(token_ids) - first
    for place, token in enumerate(found, first):
        row = expected[place - 1]
        assert token.logprob == pytest.approx(row[token_ids[place]].item(), abs=1e-4)
        assert len(token.top) == top
        values = [logprob for _, logprob in token.top]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(row.topk(top).values.tolist(), abs=1e-4)
        assert values == pytest.approx([row[i].item() for i, _ in token.top], abs=1e-4)


# The random model's logits; decoding has the bits of a prefill only up to the order of sums.
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 5, "seed": 1},
        {"temperature": 0.0, "repetition_penalty": 1.8, "frequency_penalty": 1.0},
        {"temperature": 1.3, "seed": 2, "allowed_token_ids": (3, 5, 7, 11)},
    ],
)
def test_they_are_the_softmax_of_the_models_logits_before_sampling(
    folder: Path, sampling: dict[str, Any], eager: bool
) -> None:
    llm = LLM(folder, device="cpu", weight_cache=False, eager=eager, max_batch_tokens=16)
    params = SamplingParams(max_tokens=9, logprobs=4, prompt_logprobs=2, **sampling)
    completion = generate(llm, PROMPT, params)
    every = PROMPT + completion.token_ids
    assert completion.logprobs is not None
    assert completion.prompt_logprobs is not None
    assert completion.prompt_logprobs[0] is None
    check(llm, every, len(PROMPT), completion.logprobs, top=4)
    check(llm, PROMPT, 1, completion.prompt_logprobs[1:], top=2)


def generate(llm: LLM, prompt: list[int], params: SamplingParams) -> Completion:
    """As LLM.generate, which wants a tokenizer."""
    engine = llm._engine
    engine.add("a", prompt, params)
    outputs: list[TokenOutput] = []
    while engine.has_work:
        outputs += engine.step()
    return Completion(
        "",
        [token_id for output in outputs for token_id in output.token_ids],
        outputs[-1].finish_reason or "length",
        prompt,
        [t for output in outputs if output.logprobs for t in output.logprobs.tokens()],
        [
            None,
            *(
                t
                for output in outputs
                if output.prompt_logprobs
                for t in output.prompt_logprobs.tokens()
            ),
        ],
    )


def test_a_prompt_alone_can_be_scored(folder: Path) -> None:
    llm = LLM(folder, device="cpu", weight_cache=False)
    completion = generate(llm, PROMPT, SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert completion.token_ids == []
    assert completion.finish_reason == "length"
    assert completion.prompt_logprobs is not None
    check(llm, PROMPT, 1, completion.prompt_logprobs[1:], top=0)


def test_a_prompt_is_scored_with_room_for_a_token(folder: Path) -> None:
    llm = LLM(folder, device="cpu", weight_cache=False, max_model_len=37, kv_cache_tokens=37)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    with pytest.raises(RequestError) as error:
        generate(llm, PROMPT, params)
    assert error.value.code == "context_length_exceeded"
    assert len(generate(llm, PROMPT[1:], params).prompt_logprobs or ()) == 36


def serve(
    loads: list[tuple[list[int], SamplingParams]], num_blocks: int, overlap: bool, **options: Any
) -> list[tuple[list[int], list[TokenLogprob], list[TokenLogprob]]]:
    values = EngineOptions(model="", eager=True, eos_token_ids=(0,), **options)
    engine = Engine(token_model(num_blocks), values, overlap=overlap)
    results: list[Any] = [([], [], []) for _ in loads]
    for i, (prompt, params) in enumerate(loads):
        engine.add(str(i), prompt, params)
    while engine.has_work:
        for output in engine.step():
            tokens, generated, prompt = results[int(output.request_id)]
            assert output.prompt_logprobs is None or not tokens
            tokens += output.token_ids
            generated += output.logprobs.tokens() if output.logprobs else []
            prompt += output.prompt_logprobs.tokens() if output.prompt_logprobs else []
    assert engine.num_free_blocks == num_blocks
    return results


tops = st.none() | st.sampled_from((0, 1, 3, 20))


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[int], SamplingParams]:
    max_tokens = draw(st.integers(0, 30))
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=draw(st.sampled_from((0, max_tokens // 2))),
        temperature=draw(st.sampled_from((0.0, 1.0))),
        typical_p=draw(st.sampled_from((1.0, 0.6))),
        repetition_penalty=draw(st.sampled_from((1.0, 1.0, 1.4))),
        presence_penalty=draw(st.sampled_from((0.0, 0.7))),
        frequency_penalty=draw(st.sampled_from((0.0, 0.0, 0.3))),
        logit_bias=draw(st.dictionaries(st.integers(0, VOCAB - 1), st.integers(-5, 5), max_size=2)),
        allowed_token_ids=draw(st.sampled_from((None, None, (0, 1, 2, 4, 7)))),
        bad_token_ids=draw(st.sampled_from(((), (4,)))),
        stop_token_ids=draw(st.sampled_from(((), (2, 9)))),
        seed=draw(st.integers(0, 5)),
        logprobs=draw(tops),
        prompt_logprobs=draw(tops),
    )
    return draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=50)), params


@settings(max_examples=40)
@given(st.lists(loads(), min_size=1, max_size=6), st.integers(6, 12), st.integers(1, 40))
def test_neither_neighbours_nor_preemption_nor_overlap_change_them(
    mixed: list[tuple[list[int], SamplingParams]], num_blocks: int, budget: int
) -> None:
    alone = [serve([load], 16, False)[0] for load in mixed]
    for overlap in (False, True):
        assert serve(mixed, num_blocks, overlap, max_batch_tokens=budget) == alone
    for (prompt, params), (tokens, generated, of_prompt) in zip(mixed, alone, strict=True):
        assert len(generated) == (0 if params.logprobs is None else len(tokens))
        assert len(of_prompt) == (0 if params.prompt_logprobs is None else len(prompt) - 1)
        assert {len(token.top) for token in generated} <= {min(params.logprobs or 0, VOCAB)}
        assert not set(params.bad_token_ids).intersection(tokens)
        assert set(tokens) <= set(params.allowed_token_ids or range(VOCAB))
        assert not {0, *params.stop_token_ids}.intersection(tokens[: params.min_tokens])
        assert len(tokens) >= params.min_tokens


def test_a_cached_prompt_is_scored_all_the_same() -> None:
    values = EngineOptions(model="", eager=True, max_batch_tokens=20)
    engine = Engine(token_model(16), values)
    prompt = [(5 * i) % VOCAB for i in range(70)]
    found = []
    for scored in (None, 2, 2, None):
        engine.add("a", prompt, SamplingParams(max_tokens=1, prompt_logprobs=scored, seed=1))
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        scores = [t for o in outputs if o.prompt_logprobs for t in o.prompt_logprobs.tokens()]
        found.append((sum(output.cached_tokens for output in outputs), scores))
    assert [cached for cached, _ in found] == [0, 0, 0, 64]
    assert [len(scores) for _, scores in found] == [0, 69, 69, 0]
    assert found[1] == found[2]


@pytest.mark.parametrize(
    ("settings_", "field"),
    [
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": (-1,)}, "allowed_token_ids"),
        ({"bad_token_ids": (VOCAB,)}, "bad_token_ids"),
        ({"stop_token_ids": (VOCAB,)}, "stop_token_ids"),
        ({"allowed_token_ids": (0, 5), "stop_token_ids": (5,), "min_tokens": 1}, "min_tokens"),
    ],
)
def test_ids_that_the_model_lacks_are_refused_by_name(
    settings_: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError, match=field) as error:
        serve([([1], SamplingParams(**settings_))], 4, False)
    assert error.value.param == field


def test_a_stop_token_ends_the_text_and_is_its_last() -> None:
    [(text, _, _)] = serve([([5, 3], SamplingParams(max_tokens=20, temperature=0.0))], 8, False)
    stop = text[4]
    params = SamplingParams(max_tokens=20, temperature=0.0, stop_token_ids=(stop,))
    [(stopped, _, _)] = serve([([5, 3], params)], 8, False)
    assert stopped == text[: text.index(stop) + 1]
