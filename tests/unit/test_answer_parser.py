"""From the text of an answer to thinking, content and calls, however the text is cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwell.server.answer.parser import AnswerForm, AnswerParser, end_of_answer
from qwell.server.answer.reading import CallArguments, CallBegin, CallEnd, Content, Piece, Reasoning
from qwell.server.answer.tool_calls_json import JsonCalls
from qwell.server.answer.tool_calls_xml import XmlCalls
from qwell.server.protocol.chat_answer import ChoiceParts, whole_message
from qwell.server.protocol.tools import FunctionSpec

SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "scale": {"enum": ["C", "F"]},
            "limit": {"type": "number"},
            "exact": {"type": "boolean"},
            "tags": {"type": "array"},
            "where": {"$ref": "#/$defs/where"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "anything": {},
        },
        "$defs": {"where": {"type": "object"}},
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": {"type": "integer"}},
}
FUNCTIONS = [FunctionSpec(name, parameters=dict(schema)) for name, schema in SCHEMAS.items()]
JSON = AnswerForm(thinks=True, calls=JsonCalls(FUNCTIONS))
XML = AnswerForm(thinks=True, thinking_opened=True, calls=XmlCalls(FUNCTIONS))
FORMS = {
    "json": JSON,
    "xml": XML,
    "plain": AnswerForm(),
    "one": AnswerForm(False, False, JSON.calls, True),
}


class Call(NamedTuple):
    name: str
    arguments: str
    whole: bool = True


class Answer(NamedTuple):
    reasoning: str
    content: str
    calls: tuple[Call, ...] = ()


def parse(form: AnswerForm, texts: Iterable[str]) -> Answer:
    parser = AnswerParser(form)
    pieces: list[Piece] = []
    for text in texts:
        pieces += parser.push(text)
    pieces += parser.finish()
    reasoning, content, calls = "", "", list[Call]()
    for piece in pieces:
        match piece:
            case Reasoning(text):
                reasoning += text
            case Content(text):
                content += text
            case CallBegin(name):
                calls.append(Call(name, "", False))
            case CallArguments(text):
                assert not calls[-1].whole
                calls[-1] = calls[-1]._replace(arguments=calls[-1].arguments + text)
            case CallEnd():
                calls[-1] = calls[-1]._replace(whole=True)
    return Answer(reasoning, content, tuple(calls))


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [
        ("json", "<think>\nHm.\n</think>\n\nYes.\n", Answer("Hm.", "Yes.\n")),
        ("json", "<think>\n\n</think>\n\nYes.", Answer("", "Yes.")),
        ("json", "<think>endless <tool_call>", Answer("endless <tool_call>", "")),
        ("json", "No <think>x</think>", Answer("", "No <think>x</think>")),
        ("json", "  <thin", Answer("", "  <thin")),
        ("xml", "Hm.\n</think>\n\nYes.", Answer("Hm.", "Yes.")),
        ("xml", "Hm.\n\n</thin", Answer("Hm.\n\n</thin", "")),
        ("plain", "<think>a</think><tool_call>b", Answer("", "<think>a</think><tool_call>b")),
        (
            "json",
            'Look.\n<tool_call>\n{"name": "now", "arguments": {"a": "}\\"<{"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n',
            Answer("", "Look.", (Call("now", '{"a": "}\\"<{"}'), Call("now", "{}"))),
        ),
        (
            "json",
            '<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call> done',
            Answer("", " done", (Call("now", '{"a":1}'),)),
        ),
        (
            "json",
            '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>',
            Answer("", "", (Call("now", '{"a":1}'),)),
        ),
        (
            "json",
            '<tool_call>{"name": "now", "arguments": {}}}</tool_call>',
            Answer("", "", (Call("now", "{}"),)),
        ),
        (
            "json",
            '<tool_call>{"name": "now", "arguments": {"a": [1}\n<tool_call>',
            Answer("", "<tool_call>", (Call("now", '{"a": [1}\n', whole=False),)),
        ),
        (
            "json",
            '<tool_call>{"name": "now", "arguments": {"a": {"b": 1}</tool_call>rest',
            Answer("", "rest", (Call("now", '{"a": {"b": 1}', whole=False),)),
        ),
        (
            "one",
            '<tool_call>{"name": "now", "arguments": {}}</tool_call>\n'
            '<tool_call>{"name": "now", "arguments": {"b": 2}}</tool_call> and so on',
            Answer("", "", (Call("now", "{}"),)),
        ),
        (
            "xml",
            '</think>\n\nLook.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nKöln "am\n '
            'Rhein"\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=exact>\nTrue\n'
            "</parameter>\n</function>\n</tool_call>\n",
            Answer(
                "",
                "Look.",
                (
                    Call(
                        "weather", '{"city": "Köln \\"am\\n Rhein\\"\\n", "days": 3, "exact": true}'
                    ),
                ),
            ),
        ),
        (
            "xml",
            "</think><tool_call><function=now></function></tool_call>",
            Answer("", "", (Call("now", "{}"),)),
        ),
        (
            "xml",
            "</think>Now: <function=now>\n</function>\n</tool_call>\n<function=then>",
            Answer("", "Now:\n<function=then>", (Call("now", "{}"),)),
        ),
        (
            "xml",
            "</think><tool_call>\n<function=weather>\n<parameter=city>\nKö",
            Answer("", "", (Call("weather", '{"city": "Kö', whole=False),)),
        ),
        (
            "xml",
            "</think><tool_call>\n<function=weather>\n<parameter=days>\n1</parameter>\n oh",
            Answer("", "\n oh", (Call("weather", '{"days": 1', whole=False),)),
        ),
    ],
)
def test_examples(form: str, text: str, answer: Answer) -> None:
    assert parse(FORMS[form], [text]) == answer
    assert parse(FORMS[form], text) == answer


@pytest.mark.parametrize(
    ("form", "block"),
    [
        ("json", '{"name": "unknown", "arguments": {}}'),
        ("json", '{"name": "now", "arguments": [1]}'),
        ("json", '{"name": "now"}'),
        ("json", '{"name": "now", "arguments": "x"}'),
        ("json", '{"arguments": {}, "name": "now", }'),
        ("json", "now()"),
        ("json", ""),
        ("json", "{" + " " * 300 + '"name": "now", "arguments": {}'),
        ("json", "<function=now></function>"),
        ("xml", '{"name": "now", "arguments": {}}'),
        ("xml", "<function=unknown>\n</function>"),
        ("xml", "<function=>\n</function>"),
        ("xml", "<function=now"),
    ],
)
def test_what_is_no_call_is_content(form: str, block: str) -> None:
    text = f"A\n <tool_call>{block}</tool_call>\n"
    opening = "" if form == "json" else "</think>"
    assert parse(FORMS[form], [opening + text]) == Answer("", text)
    assert parse(FORMS[form], opening + text) == Answer("", text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("city", "5", "5"),
        ("city", "null", "null"),
        ("city", "", ""),
        ("days", "5", 5),
        ("days", "5.5", "5.5"),
        ("days", "many", "many"),
        ("days", "NaN", "NaN"),
        ("limit", "5", 5),
        ("limit", "-1.5e3", -1500.0),
        ("scale", "C", "C"),
        ("exact", "false", False),
        ("exact", "False", False),
        ("tags", '["a", {"b": null}]', ["a", {"b": None}]),
        ("tags", "a, b", "a, b"),
        ("where", '{\n "x": 1\n}', {"x": 1}),
        ("note", "None", None),
        ("note", "text", "text"),
        ("note", "5", "5"),
        ("anything", "[1]", [1]),
        ("anything", "5 or 6", "5 or 6"),
        ("undeclared", "5", "5"),
    ],
)
def test_values_have_their_declared_types(name: str, text: str, value: Any) -> None:
    block = f"</think><tool_call>\n<function=weather>\n<parameter={name}>\n{text}\n</parameter>\n"
    (call,) = parse(XML, [block + "</function>\n</tool_call>"]).calls
    arguments = json.loads(call.arguments)
    assert arguments == {name: value}
    assert type(arguments[name]) is type(value)


def test_values_that_only_a_general_schema_declares() -> None:
    block = "</think><tool_call><function=now><parameter=x>5</parameter></function>"
    assert parse(XML, [block]).calls == (Call("now", '{"x": 5}'),)


@pytest.mark.parametrize(
    "tag", ["", "\n", "\n<", "\n<param", "\n<parameter=", "\n<parameter=ci", "</func"]
)
def test_a_tag_that_is_cut_off_is_no_content(tag: str) -> None:
    for before in ("", "<parameter=days>5</parameter>"):
        answer = parse(XML, [f"</think><tool_call>\n<function=weather>{before}{tag}"])
        assert answer.content == ""
        assert [call.name for call in answer.calls] == ["weather"]
    assert parse(XML, ["</think><tool_call><function=now>\n<b"]).content == "\n<b"


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<function=now>", "</function>"]
TAGS += ["<parameter=city>", "<parameter=days>", "</parameter>", "<function=weather>", "\n", "  "]
TAGS += [
    '{"name": "now", "arguments": ',
    '{"a": "x',
    '"}',
    "}",
    "{",
    "\\",
    "<",
    "你好",
    "👍🏽",
    "é",
]
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
parts = st.sampled_from(TAGS) | plain_text
half_parts = st.builds(lambda part, end: part[:end], parts, st.integers(0, 12))
texts = st.lists(parts | half_parts, max_size=20).map("".join)
cuts = st.lists(st.integers(0, 200), max_size=12)


def cut(text: str, at: list[int]) -> list[str]:
    places = sorted({0, len(text), *(place for place in at if place < len(text))})
    return [text[begin:end] for begin, end in pairwise(places)]


@settings(max_examples=400)
@given(form=st.sampled_from(sorted(FORMS)), text=texts, at=cuts)
def test_any_text_gives_the_same_however_it_is_cut(form: str, text: str, at: list[int]) -> None:
    whole = parse(FORMS[form], [text])
    assert parse(FORMS[form], cut(text, at)) == whole
    assert parse(FORMS[form], text) == whole


@settings(max_examples=150)
@given(form=st.sampled_from([JSON, XML]), text=texts)
def test_an_answer_that_is_over_lacks_nothing(form: AnswerForm, text: str) -> None:
    one = AnswerForm(calls=form.calls, one_call=True)
    is_over = end_of_answer(one)
    assert is_over is not None
    length = next((end for end, char in enumerate(text, 1) if is_over(char)), len(text))
    assert parse(one, [text[:length]]) == parse(one, [text])


@pytest.mark.parametrize("form", [JSON, XML])
def test_an_answer_is_over_with_the_tag_that_closes_its_call(form: AnswerForm) -> None:
    body = '{"name": "now", "arguments": {}}' if form is JSON else "<function=now>\n</function>"
    is_over = end_of_answer(AnswerForm(calls=form.calls, one_call=True))
    assert is_over is not None
    assert not is_over(f"Hm. <tool_call>\n{body}\n</tool_call")
    assert is_over(">")
    assert end_of_answer(form) is None


@settings(max_examples=150)
@given(form=st.sampled_from(sorted(FORMS)), legacy=st.booleans(), text=texts, at=cuts)
def test_streamed_deltas_add_up_to_the_message(
    form: str, legacy: bool, text: str, at: list[int]
) -> None:
    legacy = legacy and form == "one"
    streamed, plain = (ChoiceParts(FORMS[form], legacy=legacy) for _ in range(2))
    deltas = [delta for piece in cut(text, at) for delta in streamed.push(piece)]
    deltas += streamed.finish()
    message = whole_message([*plain.push(text), *plain.finish()])

    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
    reasoning = "".join(delta.reasoning_content or "" for delta in deltas)
    assert reasoning == (message.reasoning_content or "")
    calls = [part for delta in deltas for part in delta.tool_calls or ()]
    for index, call in enumerate(message.tool_calls or ()):
        first, *rest = [part for part in calls if part.index == index]
        assert (first.type, first.function.name) == ("function", call.function.name)
        assert first.id
        assert not any(part.id or part.type or part.function.name for part in rest)
        arguments = "".join(part.function.arguments for part in (first, *rest))
        assert arguments == call.function.arguments
    assert {part.index for part in calls} == set(range(len(message.tool_calls or ())))
    functions = [delta.function_call for delta in deltas if delta.function_call]
    if message.function_call:
        assert functions[0].name == message.function_call.name
        arguments = "".join(part.arguments for part in functions)
        assert arguments == message.function_call.arguments
    else:
        assert not functions
    assert streamed.finish_reason("stop") == plain.finish_reason("stop")
    assert streamed.thought_chars == plain.thought_chars


@settings(max_examples=100)
@given(text=texts.filter(lambda text: "<tool_call>" not in text and "<think>" not in text))
def test_text_without_tags_is_content(text: str) -> None:
    assert parse(JSON, text) == Answer("", text)


prose = plain_text.map(str.strip).filter(lambda text: "<" not in text)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | plain_text | st.sampled_from(TAGS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=5,
)
json_calls = st.tuples(
    st.sampled_from(sorted(SCHEMAS)), st.dictionaries(plain_text, values, max_size=3)
)
xml_arguments = st.fixed_dictionaries(
    {},
    optional={
        "city": st.lists(parts, max_size=4).map("".join).filter(lambda v: "</parameter>" not in v),
        "days": st.integers(-(10**9), 10**9),
        "exact": st.booleans(),
        "tags": st.lists(st.integers() | plain_text, max_size=3),
    },
)
xml_calls = st.tuples(st.just("weather"), xml_arguments)


def as_json(name: str, arguments: Mapping[str, Any]) -> str:
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


def as_xml(name: str, arguments: Mapping[str, Any]) -> str:
    lines = [f"<tool_call>\n<function={name}>"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"<parameter={key}>\n{text}\n</parameter>")
    return "\n".join([*lines, "</function>\n</tool_call>"])


@settings(max_examples=200)
@given(
    reasoning=prose,
    content=prose,
    calls=st.lists(json_calls, max_size=3).map(lambda calls: (JSON, as_json, "<think>\n", calls))
    | st.lists(xml_calls, max_size=3).map(lambda calls: (XML, as_xml, "", calls)),
    at=cuts,
)
def test_what_a_model_means_comes_out(
    reasoning: str, content: str, calls: Any, at: list[int]
) -> None:
    form, write, opening, called = calls
    blocks = [content, *(write(*call) for call in called)]
    text = f"{opening}{reasoning}\n</think>\n\n" + "\n".join(filter(None, blocks))

    answer = parse(form, cut(text, at))

    assert (answer.reasoning, answer.content) == (reasoning, content)
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == called
    assert all(call.whole for call in answer.calls)
