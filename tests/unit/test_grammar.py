"""Completions that must match a grammar: what is generated, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from checkpoints import make_checkpoint
from engines import start_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tiny_tokenizers import ENDOFTEXT, IM_END, IM_START, TOOL_CALL, tiny_backend

from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import MAX_GRAMMAR_BYTES, Grammar, check_grammar
from qwell.runtime.llm import LLM
from qwell.runtime.loader import LoadedModel, load_model
from qwell.runtime.messages import FinishReason
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Sequence
from qwell.runtime.thinking import Thinking
from qwell.runtime.tokenizer import Tokenizer

# More rows than the tokenizer has ids, as Qwen's models have.
VOCAB = 280
TOKENIZER = Tokenizer(tiny_backend())
PROMPT = TOKENIZER.encode("abc")
AB = Grammar("regex", "[ab]{3,5}")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, "qwen3", vocab_size=VOCAB, max_position_embeddings=2048)
    tiny_backend().save(str(folder / "tokenizer.json"))
    return EngineOptions(
        model=str(folder),
        device="cpu",
        weight_cache=False,
        kv_cache_tokens=4096,
        eos_token_ids=(IM_END, ENDOFTEXT),
    )


@pytest.fixture(scope="module")
def model(options: EngineOptions) -> LoadedModel:
    return load_model(options)


@pytest.fixture(scope="module")
def engine(model: LoadedModel, options: EngineOptions) -> Iterator[Engine]:
    running = Engine(model, options)
    yield running
    running.close()


class Answers:
    """What an engine gave, by request id."""

    def __init__(self) -> None:
        self.ids: dict[str, list[int]] = {}
        self.reasons: dict[str, FinishReason] = {}
        self.errors: dict[str, str] = {}

    def text(self, name: str) -> str:
        return TOKENIZER.decode(self.ids[name])


def run(engine: Engine, requests: dict[str, SamplingParams]) -> Answers:
    answers = Answers()
    for name, params in requests.items():
        engine.add(name, [*PROMPT, len(name)], params)
    free = engine.num_free_blocks
    while engine.has_work:
        for output in engine.step():
            assert output.request_id not in answers.reasons, "a token after the end"
            answers.ids.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason is not None:
                answers.reasons[output.request_id] = output.finish_reason
            if output.error is not None:
                answers.errors[output.request_id] = output.error
    assert engine.num_free_blocks == free
    return answers


def one(engine: Engine, grammar: Grammar | None, **values: Any) -> tuple[str, FinishReason]:
    params = SamplingParams(**{"max_tokens": 400, "temperature": 1.0, "grammar": grammar, **values})
    answers = run(engine, {"one": params})
    return answers.text("one"), answers.reasons["one"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (AB, "[ab]{3,5}"),
        (Grammar("regex", "你好|[0-9]{4}"), "你好|[0-9]{4}"),
        (Grammar.choice(['say "hi"\n', "é😀", "back\\slash"]), 'say "hi"\n|é😀|back\\\\slash'),
        (Grammar.choice(["a\x7fb\0\x85\u2028"]), "a\x7fb\0\x85\u2028"),
        (Grammar("lark", 'start: item ("," item)~3\nitem: /[xy]/'), "[xy](,[xy]){3}"),
        (Grammar("json_schema", '{"const": {"a": 1}}'), r'\{\s*"a"\s*:\s*1\s*\}'),
        (Grammar("gbnf", 'root ::= "n" num\n\nnum ::= [0-9]{2}'), "n[0-9]{2}"),
        # The mark is one added token, or ten bytes.
        (Grammar("lark", 'start: "<tool_call>" /[0-9]/'), "<tool_call>[0-9]"),
    ],
)
def test_text_matches_its_grammar_and_ends(
    engine: Engine, grammar: Grammar, pattern: str, temperature: float
) -> None:
    text, reason = one(engine, grammar, temperature=temperature, seed=5)
    assert re.fullmatch(pattern, text)
    assert reason == "stop"


def test_ids_end_with_one_that_ends_the_text(engine: Engine) -> None:
    answers = run(engine, {"one": SamplingParams(max_tokens=50, temperature=0.0, grammar=AB)})
    *_, last = answers.ids["one"]
    assert last in (IM_END, ENDOFTEXT)
    assert not {IM_END, ENDOFTEXT}.intersection(answers.ids["one"][:-1])


def test_a_complete_text_ends_where_no_id_may_end_it(engine: Engine) -> None:
    for values in ({"ignore_eos": True}, {"min_tokens": 100}, {"bad_token_ids": (IM_END, 262)}):
        text, reason = one(engine, AB, temperature=0.0, **values)
        assert re.fullmatch("[ab]{5}", text)
        assert reason == "stop"


def test_a_stop_id_ends_a_complete_text(engine: Engine) -> None:
    text, reason = one(engine, AB, ignore_eos=True, stop_token_ids=(7,), logit_bias={7: 100.0})
    assert re.fullmatch("[ab]{3,4}\x07", text)
    assert reason == "stop"


def test_a_stop_id_within_a_text_cuts_it_off(engine: Engine) -> None:
    text, reason = one(engine, AB, stop_token_ids=(ord("a"),), logit_bias={ord("a"): 100.0})
    assert (text, reason) == ("a", "stop")


def test_bans_and_biases_act_within_the_grammar(engine: Engine) -> None:
    assert one(engine, AB, bad_token_ids=(ord("a"), 256, 257, 258))[0].strip("b") == ""
    assert one(engine, AB, allowed_token_ids=(ord("a"), IM_END))[0].strip("a") == ""
    assert one(engine, AB, logit_bias={ord("a"): 100.0})[0].startswith("aaa")


def test_when_no_token_is_left_the_request_ends_with_an_error_and_others_go_on(
    engine: Engine,
) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=1, grammar=AB)
    alone = run(engine, {"good": params}).ids["good"]
    stuck = replace(params, allowed_token_ids=(ord("x"),))
    answers = run(engine, {"good": params, "stuck": stuck})
    assert answers.ids == {"good": alone, "stuck": []}
    assert answers.reasons.keys() == {"good"}
    assert "no token is left" in answers.errors["stuck"]


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "(a"),
        Grammar("json_schema", "{"),
        Grammar("json_schema", '{"$ref": "#"}'),
        Grammar("choice", "[" * 5000),
    ],
)
def test_a_grammar_that_is_none_costs_only_its_request(engine: Engine, grammar: Grammar) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=1)
    alone = run(engine, {"good": params}).ids["good"]
    answers = run(engine, {"good": params, "bad": replace(params, grammar=grammar)})
    assert answers.ids["good"] == alone
    assert answers.errors.keys() == {"bad"}


def test_a_request_can_be_aborted_while_its_grammar_is_compiled(engine: Engine) -> None:
    engine.add("a", PROMPT, SamplingParams(grammar=Grammar("regex", "[cd]+")))
    engine.abort("a")
    assert not engine.has_work


def test_without_a_tokenizer_grammars_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, vocab_size=VOCAB)
    engine = start_engine(tmp_path, eos_token_ids=(0,))
    answers = run(engine, {"a": SamplingParams(grammar=AB)})
    assert "tokenizer.json" in answers.errors["a"]


def mixed() -> dict[str, SamplingParams]:
    """Requests with and without grammars, greedy and not, that run side by side."""
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 10}'
    words = Grammar("regex", "(abc|xyz){12,20}")
    grammars = (None, AB, Grammar("json_schema", schema), words)
    return {
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
    ticks = iter(range(10**9))
    # By this clock a step takes as long with guesses as without.
    guessing = Engine(
        model, options, drafter=Recalls(plain.ids, wrong), clock=lambda: float(next(ticks))
    )
    run(guessing, {"first": stuck})
    for name in ("1", "2", "3", "6", "7", "stuck", "complete"):
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


schemas: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.sampled_from(
        [
            {"type": "integer", "minimum": -5, "maximum": 300},
            {"type": "number", "minimum": 0, "maximum": 9},
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": 4},
            {"type": "string", "pattern": "^[a-c]{1,3}$"},
            {"enum": ["one", 2, None, "drei"]},
        ]
    ),
    lambda inner: (
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most},
            inner,
            st.integers(0, 3),
        )
        | st.builds(lambda either: {"anyOf": either}, st.lists(inner, min_size=1, max_size=2))
        | st.builds(
            lambda named, wanted: {
                "type": "object",
                "properties": named,
                "required": sorted(named)[:wanted],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "bc", "ü"]), inner, max_size=3),
            st.integers(0, 3),
        )
    ),
    max_leaves=5,
)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(schemas, st.sampled_from((0.0, 1.0))), min_size=1, max_size=6))
def test_json_validates_against_its_schema(
    engine: Engine, wanted: list[tuple[dict[str, Any], float]]
) -> None:
    requests = {
        str(i): SamplingParams(
            max_tokens=1500,
            temperature=temperature,
            seed=i,
            grammar=Grammar("json_schema", json.dumps(schema)),
        )
        for i, (schema, temperature) in enumerate(wanted)
    }
    answers = run(engine, requests)
    for i, (schema, _) in enumerate(wanted):
        assert answers.reasons[str(i)] == "stop"
        Draft202012Validator(schema).validate(json.loads(answers.text(str(i))))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        pytest.param(Grammar("ebnf", "a"), "there are json_schema", id="unknown kind"),
        pytest.param(Grammar("regex", "(a"), "unclosed group", id="bad regex"),
        pytest.param(Grammar("regex", "(?=a)b"), "look-around", id="look-around"),
        pytest.param(Grammar("lark", "start: nowhere"), "nowhere", id="unknown rule"),
        pytest.param(Grammar("gbnf", "root = 1"), "Expected ::=", id="no GBNF"),
        pytest.param(Grammar("gbnf", "#" * 10_000), "8192", id="too long GBNF"),
        pytest.param(Grammar("choice", "[]"), "at least one", id="no choice"),
        pytest.param(Grammar("choice", "[1]"), "at least one", id="numbers"),
        pytest.param(Grammar("json_schema", '{"type": "text"}'), "Invalid type", id="bad type"),
        pytest.param(
            Grammar("json_schema", '{"uniqueItems": true}'), "uniqueItems", id="unsupported"
        ),
        pytest.param(
            Grammar("json_schema", '{"$ref": "http://example.org/"}'), "example.org", id="remote"
        ),
        pytest.param(Grammar("regex", "a" * (MAX_GRAMMAR_BYTES + 1)), "bytes", id="too long"),
        pytest.param(
            Grammar("json_schema", '{"items": ' * 2000 + "{}" + "}" * 2000), "recursion", id="deep"
        ),
    ],
)
def test_what_is_no_grammar_is_refused(grammar: Grammar, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        check_grammar(grammar)
    assert refused.value.param == "grammar"


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


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("abc ab", [TOKENIZER.encode("abc")[0], *TOKENIZER.encode(" ab")]),
        ("<tool_call>x", [TOOL_CALL, ord("x")]),
        ("<|im_end|>", list(b"<|im_end|>")),
    ],
)
def test_what_must_come_is_spelt_as_the_tokenizer_spells_it(
    engine: Engine, text: str, ids: list[int]
) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0, grammar=Grammar.choice([text]))
    assert run(engine, {"one": params}).ids["one"][:-1] == ids


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


def test_llm_generates_by_a_grammar(options: EngineOptions) -> None:
    llm = LLM.from_options(options)
    params = SamplingParams(max_tokens=20, temperature=1.0, grammar=AB)
    done = llm.generate(["abc", "ü"], params)
    assert all(re.fullmatch("[ab]{3,5}", completion.text) for completion in done)
    with pytest.raises(RequestError, match="unclosed group"):
        llm.generate(["abc"], replace(params, grammar=Grammar("regex", "(a")))
    with pytest.raises(RequestError, match="no token is left"):
        llm.generate(["abc"], replace(params, allowed_token_ids=(ord("x"),)))
    assert llm.generate(["abc"], params)[0].finish_reason == "stop"
