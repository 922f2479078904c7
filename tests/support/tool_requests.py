"""Requests with tools, and what their answers call."""

from __future__ import annotations

import json
from typing import Any

from serving import ServerProcess

CHAT = "/v1/chat/completions"
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city: °C & <real>",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
CLOCK = {"name": "clock"}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, CLOCK)]
TWO_CALLS = (
    'Let me look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln 👍"}}\n'
    '</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


def say(text: str, **fields: Any) -> dict[str, Any]:
    """A request to say this text, with TOOLS unless told otherwise."""
    messages = [{"role": "user", "content": f"say:{text}"}]
    return {"model": "m", "messages": messages, "tools": TOOLS, **fields}


def answered(server: ServerProcess, body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer."""
    answer = server.post(CHAT, body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def choice_of(server: ServerProcess, body: dict[str, Any]) -> dict[str, Any]:
    """Its first choice."""
    return dict(answered(server, body)["choices"][0])


def called(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """Name and arguments of each call of a message."""
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    """A `tool_choice` of some functions."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def call(identity: str, arguments: str = "{}", name: str = "clock") -> dict[str, Any]:
    """A call as an assistant message has it."""
    function = {"name": name, "arguments": arguments}
    return {"id": identity, "type": "function", "function": function}


def result(identity: str, content: str) -> dict[str, Any]:
    """What a call has come to."""
    return {"role": "tool", "tool_call_id": identity, "content": content}
