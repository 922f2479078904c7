"""Grammars of calls: what they let a model write is a call that fits its schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import Grammar, llguidance_text
from qwell.server.answer.call_grammar import call_grammar
from qwell.server.answer.parser import AnswerForm, AnswerParser
from qwell.server.answer.reading import CallArguments, CallEnd
from qwell.server.answer.tool_calls import CallFormat
from qwell.server.answer.tool_calls_json import JsonCalls
from qwell.server.answer.tool_calls_xml import XmlCalls
from qwell.server.protocol.structured_outputs import RequestedGrammar
from qwell.server.protocol.tools import FunctionSpec, ToolUse

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "scale": {"$ref": "#/$defs/scale"},
        "where": {"$ref": "#/$defs/where"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "mood": {"anyOf": [{"$ref": "#/$defs/mood"}, {"type": "null"}]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {
        "scale": {"enum": ["C", "F"], "type": "string"},
        "where": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "mood": {"const": "fine", "type": "string"},
    },
}
WEATHER = FunctionSpec("weather", parameters=PARAMETERS, strict=True)
NOW = FunctionSpec("now")
JSON_CALL = '<tool_call>\n{{"name": "weather", "arguments": {}}}\n</tool_call>'
JSON_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
XML_NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
FORMATS = {"json": JsonCalls, "xml": XmlCalls}


def as_json(arguments: str) -> str:
    return JSON_CALL.format(arguments)


def as_xml(**values: str) -> str:
    lines = [f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items()]
    return f"<tool_call>\n<function=weather>\n{''.join(lines)}</function>\n</tool_call>"


class _Bytes:
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def matcher_of(requested: RequestedGrammar | None) -> LLMatcher:
    assert requested is not None
    assert requested.param == "tools"
    vocabulary = LLTokenizer(TokenizerWrapper(_Bytes()))
    return LLMatcher(vocabulary, llguidance_text(requested.grammar), log_level=0)


def fits(
    text: str, calls: CallFormat, use: ToolUse, content: RequestedGrammar | None = None
) -> bool:
    matcher = matcher_of(call_grammar(calls, use, content))
    assert matcher.get_error() == ""
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


def arguments_in(text: str, calls: CallFormat) -> list[Any]:
    parser = AnswerParser(AnswerForm(calls=calls))
    pieces = [*parser.push(text), *parser.finish()]
    assert sum(isinstance(piece, CallEnd) for piece in pieces) == text.count("<tool_call>")
    return [json.loads(piece.text) for piece in pieces if isinstance(piece, CallArguments)]


@pytest.mark.parametrize(
    ("form", "text", "arguments"),
    [
        ("json", as_json('{"city": "a</tool_call>", "days": 2}'), None),
        ("json", as_json('{"city": "", "days": -2, "scale": "C"}'), None),
        ("json", as_json('{"city": "ü", "days": 2, "where": [1, 2.5]}'), None),
        ("xml", as_xml(city="Köln\n<b>", days="2"), {"city": "Köln\n<b>", "days": 2}),
        ("xml", as_xml(city="", days="2", scale="F"), {"city": "", "days": 2, "scale": "F"}),
        (
            "xml",
            as_xml(city="5", days="0", where="[1, 2.5]", note="null", mood="fine"),
            {"city": "5", "days": 0, "where": [1, 2.5], "note": None, "mood": "fine"},
        ),
        ("xml", as_xml(city="5", days="0", mood="null"), {"city": "5", "days": 0, "mood": None}),
    ],
)
def test_calls_that_fit(form: str, text: str, arguments: dict[str, Any] | None) -> None:
    calls = FORMATS[form]([WEATHER, NOW])
    now = JSON_NOW if form == "json" else XML_NOW
    arguments = json.loads(text[text.index('s": {') + 4 : -14]) if arguments is None else arguments

    must, must_one = ToolUse([WEATHER, NOW], True), ToolUse([WEATHER, NOW], True, True)
    may, may_one = ToolUse([WEATHER, NOW]), ToolUse([WEATHER, NOW], False, True)
    both = f"{text}\n{now}"
    assert fits(text, calls, must)
    assert fits(both, calls, must)
    assert fits(text, calls, must_one)
    assert not fits(both, calls, must_one)
    assert fits(f"Hm <tool.\n{both} Well.", calls, may)
    assert fits(f"Hm.\n{text} Well.", calls, may_one)
    assert not fits(f"Hm.\n{both}", calls, may_one)
    assert fits("No call.", calls, may)
    assert not fits("No call.", calls, must)
    assert arguments_in(both, calls) == [arguments, {}]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json", as_json('{"days": 2}')),
        ("json", as_json('{"city": "", "days": 2.5}')),
        ("json", as_json('{"city": "", "days": 2, "scale": "K"}')),
        ("json", as_json('{"city": "", "days": 2, "more": 1}')),
        ("json", as_json('{"city": "", "days": 2, "where": [1, 2, 3]}')),
        ("json", JSON_NOW.replace("now", "then")),
        ("json", JSON_NOW.replace("{}", '{"a": 1}')),
        ("json", XML_NOW),
        ("xml", as_xml(city="")),
        ("xml", as_xml(city="", days="two")),
        ("xml", as_xml(city="", days="2", scale="K")),
        ("xml", as_xml(city="", days="2", more="1")),
        ("xml", as_xml(city="", days="2", mood="bad")),
        ("xml", as_xml(city="", days="2", where="[1, 2, 3]")),
        ("xml", XML_NOW.replace("now", "then")),
        ("xml", XML_NOW.replace("</function>\n", "")),
    ],
)
def test_calls_that_do_not_fit(form: str, text: str) -> None:
    calls = FORMATS[form]([WEATHER, NOW])
    assert not fits(text, calls, ToolUse([WEATHER, NOW], True))
    assert not fits(f"Hm.\n{text}", calls, ToolUse([WEATHER, NOW]))


SHORT = {"type": "string", "minLength": 2, "maxLength": 4}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (SHORT, ["ab", "äöüß", "\n\n", "a\n<b", "null"], ["a", "abcde", "", "👍"]),
        ({"type": "string", "minLength": 3}, ["abc", "x" * 999], ["ab"]),
        ({"type": "string", "maxLength": 256}, ["", "x" * 256], ["x" * 257]),
        ({"anyOf": [SHORT, {"type": "null"}]}, ["ab", "null"], ["a", "none!"]),
        ({"anyOf": [SHORT, {"enum": ["as long as this"]}]}, ["ab", "as long as this"], ["as long"]),
        ({"type": "string", "format": "date"}, ["2026-02-28"], ["2026-13-01", "2026-1-1", ""]),
        (
            {"type": "string", "format": "date-time"},
            ["2026-02-28T23:59:59Z", "2026-02-28T00:00:00.25+01:00"],
            ["2026-02-28T23:59:59", "2026-02-28 23:59:59Z", "2026-02-28T24:00:00Z"],
        ),
        ({"type": "string", "format": "time"}, ["12:00:00Z"], ["12:00"]),
        (
            {"type": "string", "format": "uuid"},
            ["123e4567-e89b-12d3-a456-426614174000"],
            ["123e4567-e89b-12d3-a456-42661417400", "g23e4567-e89b-12d3-a456-426614174000"],
        ),
    ],
)
def test_texts_of_the_xml_form_are_held_to_what_is_said_of_them(
    schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    parameters = {"properties": {"city": schema, "again": schema}, "required": ["city"]}
    calls = XmlCalls([FunctionSpec("weather", parameters=parameters, strict=True)])
    use = ToolUse([FunctionSpec("weather")], must_call=True)
    for text in good:
        call = as_xml(city=text, again=text)
        assert fits(call, calls, use), text
        (arguments,) = arguments_in(call, calls)
        Draft202012Validator(parameters).validate(arguments)
    for text in [*bad, "x\n</parameter>y"]:
        assert not fits(as_xml(city=text), calls, use), text


def test_calls_are_free_where_no_function_is_strict() -> None:
    assert call_grammar(JsonCalls([NOW]), ToolUse([NOW]), None) is None


def test_calls_without_an_opening_tag_are_no_way_around() -> None:
    calls, use = XmlCalls([WEATHER]), ToolUse([WEATHER])
    assert fits("x <function", calls, use)
    assert not fits("x <function=weather>", calls, use)
    assert not fits(f"x <function=weather></function>{as_xml(city='', days='1')}", calls, use)


def test_calls_or_content_of_a_form() -> None:
    calls, use = JsonCalls([NOW]), ToolUse([NOW])
    schema = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    form = RequestedGrammar(Grammar("json_schema", schema), "response_format")
    assert fits('{"a": 1}', calls, use, form)
    assert fits(JSON_NOW, calls, use, form)
    assert not fits('{"a": "b"}', calls, use, form)
    assert not fits("Hm.", calls, use, form)
    pattern = RequestedGrammar(Grammar("regex", "a+"), "structured_outputs.regex")
    for content, tools, advice in (
        (form, ToolUse([NOW], must_call=True), "tool_choice asks for a call.* leave one out"),
        (pattern, use, "JSON schema.* or tool_choice none"),
        (pattern, ToolUse([NOW], legacy=True), "JSON schema.* or function_call none"),
    ):
        with pytest.raises(RequestError, match=advice) as caught:
            call_grammar(calls, tools, content)
        assert caught.value.param == content.param


@pytest.mark.parametrize(
    ("parameters", "more"),
    [
        ({"properties": {"a": {"type": "integer"}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}, True),
        ({"anyOf": [{"properties": {"a": {}}, "required": ["a"]}]}, True),
    ],
)
def test_undeclared_arguments_come_only_where_the_schema_says_so(
    parameters: dict[str, Any], more: bool
) -> None:
    functions = [FunctionSpec("weather", parameters=parameters)]
    calls, use = JsonCalls(functions), ToolUse(functions, must_call=True)
    assert fits(as_json('{"a": 1}'), calls, use)
    assert fits(as_json('{"a": 1, "b": 2}'), calls, use) is more


@pytest.mark.parametrize("form", FORMATS)
def test_a_function_of_many_optional_parameters(form: str) -> None:
    properties = {f"p{number}": {"type": "integer"} for number in range(94)}
    functions = [FunctionSpec("weather", parameters={"properties": properties})]
    calls, use = FORMATS[form](functions), ToolUse(functions, must_call=True)
    every = dict.fromkeys(properties, "1")
    some = dict([*every.items()][::2])
    for given in ({}, some, every):
        pairs = ", ".join(f'"{name}": {value}' for name, value in given.items())
        assert fits(as_json(f"{{{pairs}}}") if form == "json" else as_xml(**given), calls, use)


def test_keywords_that_cannot_be_enforced_are_left_out_unless_strict() -> None:
    parameters = {"properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    lenient = FunctionSpec("weather", parameters=parameters)
    use = ToolUse([lenient], True)
    assert fits(as_json('{"a": [1, 1]}'), JsonCalls([lenient]), use)
    strict = JsonCalls([FunctionSpec("weather", parameters=parameters, strict=True)])
    assert "uniqueItems" in matcher_of(call_grammar(strict, use, None)).get_error()


@pytest.mark.parametrize(
    ("parameters", "strict", "message"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "x+"}}}, True, "'a' says more"),
        ({"properties": {"a": {"type": "string", "maxLength": 257}}}, True, "up to 256"),
        ({"properties": {"a": {"type": "string", "minLength": -1}}}, True, "says more"),
        (
            {"properties": {"a": {"type": "string", "format": "date", "maxLength": 9}}},
            True,
            "says more",
        ),
        (
            {"properties": {"a": {"anyOf": [{"type": "string", "format": "email"}]}}},
            True,
            "says more",
        ),
        (
            {"properties": {"a": {"anyOf": [{"type": "string", "maxLength": 3}, {"enum": [5]}]}}},
            True,
            "says more",
        ),
        ({"properties": {"a\n": {"type": "string"}}}, False, "cannot be written"),
        ({"properties": {}, "required": [">"]}, False, "cannot be written"),
    ],
)
def test_what_the_xml_form_cannot_be_held_to(
    parameters: dict[str, Any], strict: bool, message: str
) -> None:
    function = FunctionSpec("f", parameters=parameters, strict=strict)
    with pytest.raises(RequestError, match=message) as caught:
        call_grammar(XmlCalls([function]), ToolUse([function], True, legacy=True), None)
    assert caught.value.param == "functions"
