"""Tools: how they reach the template, how calls are answered, and how results come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from chat_templates import QWEN2_5, server_of
from serving import ServerProcess, error_of
from tool_requests import (
    CHAT,
    CLOCK,
    TOOLS,
    TWO_CALLS,
    WEATHER,
    allowed,
    answered,
    call,
    called,
    choice_of,
    result,
    say,
)

XML_CALL = (
    "Hm.\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)


@pytest.fixture
def json_client(qwen3: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{qwen3.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_calls_with_text_before_them(json_client: openai.OpenAI) -> None:
    (choice,) = json_client.chat.completions.create(**say(TWO_CALLS)).choices

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    calls = choice.message.tool_calls
    assert calls is not None
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "get_weather", '{"city": "Köln 👍"}'),
        ("function", "clock", "{}"),
    ]
    assert len({call.id for call in calls}) == 2


def test_the_xml_form_with_thinking(qwen3_5: ServerProcess) -> None:
    choice = choice_of(qwen3_5, say(XML_CALL))

    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "Hm.")
    assert called(message) == [("get_weather", {"city": "Köln", "days": 3})]


def test_streamed_calls_add_up_to_the_same(
    json_client: openai.OpenAI, qwen3: ServerProcess
) -> None:
    body = say(TWO_CALLS)
    body["messages"][0]["content"] = f"slow:{TWO_CALLS}"
    chunks = [*json_client.chat.completions.create(**body, stream=True)]

    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me look."
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    for index, whole in enumerate(choice_of(qwen3, say(TWO_CALLS))["message"]["tool_calls"]):
        first, *others = [part for part in parts if part.index == index]
        assert first.id
        assert (first.type, first.function.name) == ("function", whole["function"]["name"])
        assert first.function.arguments == ""
        assert {(part.id, part.type, part.function.name) for part in others} == {(None, None, None)}
        arguments = "".join(part.function.arguments for part in others)
        assert arguments == whole["function"]["arguments"]
    assert sum(part.index == 0 for part in parts) > 3  # not all at once
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_clients_own_stream_helper_understands(json_client: openai.OpenAI) -> None:
    with json_client.chat.completions.stream(**say(TWO_CALLS)) as stream:
        (choice,) = stream.get_final_completion().choices

    assert choice.message.content == "Let me look."
    assert choice.message.tool_calls is not None
    names = [call.function.name for call in choice.message.tool_calls]
    assert names == ["get_weather", "clock"]


def test_declarations_reach_the_template_as_models_know_them(qwen3: ServerProcess) -> None:
    def prompt_tokens(**fields: Any) -> int:
        return int(answered(qwen3, say("hi", **fields))["usage"]["prompt_tokens"])

    shuffled = [
        {
            "function": {
                "strict": False,
                "parameters": WEATHER["parameters"],
                "description": WEATHER["description"],
                "name": WEATHER["name"],
            },
            "type": "function",
        },
        TOOLS[1],
    ]
    lines = [json.dumps(tool, ensure_ascii=False) + "\n" for tool in TOOLS]
    assert prompt_tokens() - prompt_tokens(tools=TOOLS[:1]) == len(lines[1].encode())
    assert prompt_tokens(tools=shuffled) == prompt_tokens()
    assert prompt_tokens(tool_choice="none") == prompt_tokens(tools=[]) < prompt_tokens()


def test_without_tools_calls_are_text(qwen3: ServerProcess) -> None:
    for fields in ({"tools": []}, {"tool_choice": "none"}):
        choice = choice_of(qwen3, say(TWO_CALLS, **fields))
        assert choice["message"]["content"] == TWO_CALLS
        assert choice["finish_reason"] == "stop"
        assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_leave_the_prompt_as_it_is(json_client: openai.OpenAI, mode: str) -> None:
    plain = json_client.chat.completions.create(**say(TWO_CALLS))
    choice = allowed(mode, "clock")
    answer = json_client.chat.completions.create(**say(TWO_CALLS, tool_choice=choice))

    assert answer.usage is not None
    assert plain.usage is not None
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens
    assert [name for name, _ in called(answer.choices[0].message.model_dump())] == ["clock"]


def test_calls_nobody_declared_are_text(qwen3: ServerProcess) -> None:
    choice = choice_of(qwen3, say(TWO_CALLS, tools=TOOLS[1:]))

    assert called(choice["message"]) == [("clock", {})]
    assert choice["message"]["content"] == TWO_CALLS.split('\n<tool_call>\n{"name": "clock')[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_one_call_at_most_ends_the_answer(
    json_client: openai.OpenAI, stream: bool, together: bool
) -> None:
    ids = [*TWO_CALLS.encode()]
    script = "ids:" + ("," if together else " ").join(map(str, ids))
    body = say("", parallel_tool_calls=False, max_tokens=3000, extra_body={"ignore_eos": True})
    body["messages"][0]["content"] = script

    if stream:
        options = {"include_usage": True}
        with json_client.chat.completions.stream(**body, stream_options=options) as events:
            answer = events.get_final_completion()
    else:
        answer = json_client.chat.completions.create(**body)

    (choice,) = answer.choices
    assert [name for name, _ in called(choice.message.model_dump())] == ["get_weather"]
    assert choice.finish_reason == "tool_calls"
    assert answer.usage is not None
    made = TWO_CALLS[: TWO_CALLS.index("</tool_call>") + len("</tool_call>")]
    assert answer.usage.completion_tokens == len(made.encode())


@pytest.mark.parametrize("end", [{"max_tokens": 62}, {"stop": "ln"}])
def test_a_call_that_is_cut_off_keeps_what_there_is(
    qwen3: ServerProcess, end: dict[str, Any]
) -> None:
    choice = choice_of(qwen3, say(TWO_CALLS.partition("\n")[2], **end))

    assert choice["finish_reason"] == ("length" if "max_tokens" in end else "stop")
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Kö'}


def test_several_choices_call_apart(json_client: openai.OpenAI) -> None:
    stream = json_client.chat.completions.create(**say(TWO_CALLS), n=2, stream=True)

    names: list[list[str]] = [[], []]
    for chunk in stream:
        (choice,) = chunk.choices
        for part in choice.delta.tool_calls or []:
            assert part.function is not None
            if part.function.name:
                assert part.index == len(names[choice.index])
                names[choice.index].append(part.function.name)
    assert names == [["get_weather", "clock"]] * 2


class TestOlderForm:
    def body(self, text: str, **fields: Any) -> dict[str, Any]:
        body = say(text, functions=[WEATHER, CLOCK], **fields)
        del body["tools"]
        return body

    def test_a_call(self, qwen3: ServerProcess) -> None:
        choice = choice_of(qwen3, self.body(TWO_CALLS))

        assert choice["finish_reason"] == "function_call"
        message = choice["message"]
        arguments = '{"city": "Köln 👍"}'
        assert message["function_call"] == {"name": "get_weather", "arguments": arguments}
        assert message["content"] == "Let me look."
        assert "tool_calls" not in message

    def test_a_streamed_call(self, json_client: openai.OpenAI) -> None:
        chunks = [*json_client.chat.completions.create(**self.body(TWO_CALLS), stream=True)]

        calls = [chunk.choices[0].delta.function_call for chunk in chunks]
        first, *others = [call for call in calls if call is not None]
        assert (first.name, first.arguments) == ("get_weather", "")
        assert {call.name for call in others} == {None}
        assert "".join(call.arguments or "" for call in others) == '{"city": "Köln 👍"}'
        assert chunks[-1].choices[0].finish_reason == "function_call"

    def test_none_may_be_called(self, qwen3: ServerProcess) -> None:
        choice = choice_of(qwen3, self.body(TWO_CALLS, function_call="none"))
        assert choice["message"]["content"] == TWO_CALLS

    def test_history_is_that_of_tools(self, qwen3: ServerProcess) -> None:
        def prompt_tokens(*messages: dict[str, Any]) -> int:
            body = say("hi")
            body["messages"] += messages
            return int(answered(qwen3, body)["usage"]["prompt_tokens"])

        function = {"name": "clock", "arguments": "{}"}
        older = prompt_tokens(
            {"role": "assistant", "content": None, "function_call": function},
            {"role": "function", "name": "clock", "content": "12:00"},
        )
        newer = prompt_tokens(
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "12:00"},
        )
        assert older == newer


ECHO = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ c.function.arguments | tojson }}{% endfor %}"
    "{% if m.role == 'tool' %}{{ m.content }}{% endif %}{% endfor %}<|im_end|>"
)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """What the template makes of calls and results is what the engine says."""
    with server_of("say:" + ECHO, tmp_path_factory.mktemp("echo")) as server:
        yield server


class TestHistory:
    def said(self, server: ServerProcess, *messages: dict[str, Any]) -> str:
        start = [{"role": "user", "content": "x"}]
        body = {"model": "m", "messages": [*start, *messages], "max_tokens": 200}
        return str(choice_of(server, body)["message"]["content"])

    def test_arguments_become_objects(self, echo: ServerProcess) -> None:
        calls = [call("1", '{"b":"ü", "a": [1.5, null]}'), call("2", "")]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        assert self.said(echo, message) == '{"b": "ü", "a": [1.5, null]}{}'

    def test_broken_arguments_come_back_as_text(self, echo: ServerProcess) -> None:
        message = {"role": "assistant", "content": "", "tool_calls": [call("1", '{"a": ')]}
        assert json.loads(self.said(echo, message)) == '{"a": '

    def test_results_are_in_the_order_of_the_calls(self, echo: ServerProcess) -> None:
        first = {"role": "assistant", "tool_calls": [call("x"), call("y"), call("z")]}
        second = {"role": "assistant", "tool_calls": [call("z")]}
        results = [result("z", "Z"), result("x", "X"), result("y", "Y")]
        said = self.said(echo, first, *results, second, result("z", "2"))
        assert said == "{}{}{}XYZ{}2"

    def test_a_template_that_takes_text_gets_the_very_text(self, tmp_path: Path) -> None:
        source = "{% if messages[0].arguments is string %}{% endif %}say:" + ECHO
        with server_of(source, tmp_path) as server:
            message = {"role": "assistant", "content": "", "tool_calls": [call("1", '{"a":1}')]}
            assert json.loads(self.said(server, message)) == '{"a":1}'

    def test_an_answer_can_be_sent_back_as_it_is(self, json_client: openai.OpenAI) -> None:
        body = say(TWO_CALLS)
        message = json_client.chat.completions.create(**body).choices[0].message
        assert message.tool_calls is not None
        results = [result(call.id, "fine") for call in message.tool_calls]
        for sent in (message, message.model_dump(), message.model_dump(exclude_none=True)):
            body["messages"] = [*say("hi")["messages"], sent, *results]
            assert json_client.chat.completions.create(**body).choices[0].message.content == "hi"


def tools_of(**changes: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {**CLOCK, **changes}}]}


REFUSED = [
    (tools_of(name=""), "tools[0].function.name"),
    (tools_of(name="a b"), "tools[0].function.name"),
    (tools_of(name="clock\n"), "tools[0].function.name"),
    (tools_of(name="x" * 65), "tools[0].function.name"),
    (tools_of(name=None), "tools[0].function.name"),
    (tools_of(kind="x"), "tools[0].function.kind"),
    (tools_of(parameters=[]), "tools[0].function.parameters"),
    (tools_of(parameters={"type": "string"}), "tools[0].function.parameters.type"),
    (tools_of(parameters={"properties": []}), "tools[0].function.parameters.properties"),
    (tools_of(parameters={"properties": {"a": 5}}), "tools[0].function.parameters.properties.a"),
    (
        tools_of(parameters={"properties": {"a": {"items": {"type": "str"}}}}),
        "tools[0].function.parameters.properties.a.items.type",
    ),
    (
        tools_of(parameters={"properties": {"a": {"anyOf": [{"type": "null"}, 5]}}}),
        "tools[0].function.parameters.properties.a.anyOf[1]",
    ),
    (
        tools_of(parameters={"$defs": {"a": {"enum": 5}}}),
        "tools[0].function.parameters.$defs.a.enum",
    ),
    (tools_of(parameters={"allOf": {}}), "tools[0].function.parameters.allOf"),
    (tools_of(parameters={"required": "a"}), "tools[0].function.parameters.required"),
    (tools_of(description="x" * (1 << 20)), "tools"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": {}}, "tools"),
    (
        {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]},
        "tools",
    ),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    (
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}},
        "tool_choice.allowed_tools.tools",
    ),
    ({"tool_choice": allowed("auto", "clock", "other")}, "tool_choice"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    (
        {"tool_choice": "required", "response_format": {"type": "json_object"}},
        "response_format",
    ),
    ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex"),
    ({"guided_json": "x"}, "guided_json"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "x"}},
            }
        },
        "response_format.json_schema.schema",
    ),
    (tools_of(strict=True, parameters={"properties": {"a": {"uniqueItems": True}}}), "tools"),
    (tools_of(strict=True, parameters={"properties": {"a": {"$ref": "#/x"}}}), "tools"),
    ({"tools": None, "functions": [CLOCK, CLOCK]}, "functions[1].name"),
    ({"tools": None, "functions": [CLOCK], "function_call": {"name": "x"}}, "function_call"),
    ({"functions": [CLOCK]}, "functions"),
    ({"messages": [result("1", "x")]}, "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [call("1")]}, result("2", "x")]},
        "messages[1].tool_call_id",
    ),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [call("1")]}]},
        "messages[0].tool_calls",
    ),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_is_refused(qwen3: ServerProcess, fields: dict[str, Any], param: str) -> None:
    assert error_of(qwen3.post(CHAT, say("x", **fields)), 400)["param"] == param


def test_arguments_that_the_xml_form_cannot_show(qwen3_5: ServerProcess) -> None:
    message = {"role": "assistant", "tool_calls": [call("1", "[]")]}
    error = error_of(qwen3_5.post(CHAT, say("x", messages=[message])), 400)
    assert error["param"] == "messages[0].tool_calls[0].function.arguments"


def test_a_template_without_tools(server: ServerProcess) -> None:
    error = error_of(server.post(CHAT, say("x")), 400)
    assert error["param"] == "tools"
    assert "no tools" in error["message"]


def test_official_shape_without_thinking(tmp_path: Path) -> None:
    with server_of(QWEN2_5, tmp_path) as server:
        choice = choice_of(server, say("<think>a</think>" + TWO_CALLS))
    assert choice["message"]["content"] == "<think>a</think>Let me look."
    assert [name for name, _ in called(choice["message"])] == ["get_weather", "clock"]
