"""Completions that must match a grammar: what is generated, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from engines import start_engine
from grammars import AB, PROMPT, TOKENIZER, VOCAB, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tiny_tokenizers import ENDOFTEXT, IM_END, TOOL_CALL

from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import MAX_GRAMMAR_BYTES, Grammar, check_grammar
from qwell.runtime.llm import LLM
from qwell.runtime.messages import FinishReason
from qwell.runtime.sampling_params import SamplingParams


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stop_id_that_has_to_come_ends_nothing_before_min_tokens(
    engine: Engine, temperature: float
) -> None:
    quoted = Grammar("regex", '"[ab]{3,5}"')
    ids = {"temperature": temperature, "stop_token_ids": (ord('"'),)}

    assert one(engine, quoted, **ids) == ('"', "stop")
    assert re.fullmatch('"[ab]{3,5}"', one(engine, quoted, **ids, min_tokens=1)[0])
    assert re.fullmatch('"[ab]{3,5}"', one(engine, quoted, **ids, min_tokens=100)[0])
    all_stop = {**ids, "stop_token_ids": tuple(range(VOCAB)), "temperature": temperature}
    answers = run(engine, {"one": SamplingParams(**all_stop, grammar=quoted, min_tokens=4)})
    assert len(answers.ids["one"]) == 5
    assert answers.reasons["one"] == "stop"


def test_ids_that_would_end_a_text_come_late_where_others_can(engine: Engine) -> None:
    values = {"stop_token_ids": (ord("a"),), "logit_bias": {ord("a"): 100.0}}
    for min_tokens in (1, 2):
        text, reason = one(engine, AB, **values, min_tokens=min_tokens, bad_token_ids=(256, 257))
        assert re.fullmatch(f"b{{{min_tokens}}}a", text)
        assert reason == "stop"


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
