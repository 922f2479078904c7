"""The conversation of a chat request, and the form in which chat templates take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from qwell.runtime.errors import RequestError
from qwell.server.protocol.common import refuse_unsupported
from qwell.server.protocol.tools import CalledFunction, CalledTool

# The newer name of the system role and the older one of the tool role mean the same to models.
_TEMPLATE_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "refusal": (None,),
}
# Of templates: arguments may stay text; arguments are listed one by one.
_TAKES_TEXT = "arguments is string"
_NEEDS_OBJECT = "<function="
# Which roles a field is for.
_ROLES_OF_FIELDS: Mapping[str, tuple[str, ...]] = {
    "name": ("tool", "function"),
    "tool_call_id": ("tool",),
    "tool_calls": ("assistant",),
    "function_call": ("assistant",),
    "reasoning_content": ("assistant",),
}


class ContentPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message; only text parts are supported yet."""

    type: str
    text: str | None = None
    image_url: object = None
    input_audio: object = None
    file: object = None
    refusal: object = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of the conversation. Beyond OpenAI's: `reasoning_content`, as answers have it."""

    role: str
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: object = None
    audio: object = None


def template_messages(messages: Sequence[Message], template_source: str) -> list[dict[str, Any]]:
    """The conversation as the chat template of this source takes it.

    Arguments of calls become objects, unless the template says that it takes text, too. Results
    of calls are put in the order of the calls, since the models' formats have no ids.

    Raises:
        RequestError: a role, a field or a kind of content that is unknown or not supported yet,
            or a result of no call.
    """
    rendered: list[dict[str, Any]] = []
    places: dict[str, int] = {}  # of the calls of the last assistant message, by id
    results: list[tuple[int, dict[str, Any]]] = []  # with the places of their calls
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        shown = _template_message(message, path, template_source)
        if message.role == "tool":
            results.append((_place_of_call(message, places, path), shown))
            continue
        rendered += _in_order(results)
        results = []
        if message.role == "assistant":
            places = {call.id: place for place, call in enumerate(message.tool_calls or ())}
        rendered.append(shown)
    return rendered + _in_order(results)


def _in_order(results: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [result for _, result in sorted(results, key=lambda placed: placed[0])]


def _place_of_call(message: Message, places: Mapping[str, int], path: str) -> int:
    place = places.get(message.tool_call_id or "")
    if place is None:
        problem = "is missing" if message.tool_call_id is None else "names none of the calls"
        raise RequestError(
            f"{path}.tool_call_id {problem}: a tool message answers a call of the assistant "
            "message before it",
            param=f"{path}.tool_call_id",
        )
    return place


def _template_message(message: Message, path: str, template_source: str) -> dict[str, Any]:
    refuse_unsupported(message, _NEUTRAL_VALUES, f"{path}.")
    role = _TEMPLATE_ROLES.get(message.role)
    if role is None:
        known = ", ".join(_TEMPLATE_ROLES)
        raise RequestError(
            f"{path}.role {message.role!r} is none of the known roles ({known})",
            param=f"{path}.role",
        )
    for name, roles in _ROLES_OF_FIELDS.items():
        if getattr(message, name) and message.role not in roles:
            param = f"{path}.{name}"
            raise RequestError(
                f"{param} is for messages of role {' or '.join(roles)}, not {message.role}; "
                "leave it out",
                param=param,
            )
    if message.role == "function" and not message.name:
        raise RequestError(f"{path}.name must name the function", param=f"{path}.name")
    shown: dict[str, Any] = {"role": role}
    calls = _calls(message, path)
    if message.content is None and (calls or message.reasoning_content):
        shown["content"] = ""
    else:
        shown["content"] = _text(message.content, f"{path}.content")
    if message.reasoning_content:
        shown["reasoning_content"] = message.reasoning_content
    if calls:
        shown["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": _arguments(call, place, template_source),
                },
            }
            for place, call in calls
        ]
    return shown


def _calls(message: Message, path: str) -> list[tuple[str, CalledFunction]]:
    """The calls with their paths in the request."""
    if message.function_call is not None:
        return [(f"{path}.function_call", message.function_call)]
    return [
        (f"{path}.tool_calls[{index}].function", call.function)
        for index, call in enumerate(message.tool_calls or ())
    ]


def _arguments(call: CalledFunction, path: str, template_source: str) -> str | dict[str, Any]:
    if _TAKES_TEXT in template_source:
        return call.arguments or "{}"
    try:
        return msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        if _NEEDS_OBJECT not in template_source:
            # What a model has got wrong comes back to it with the complaint about it.
            return call.arguments
        raise RequestError(
            f"{path}.arguments must be the text of a JSON object, got {call.arguments!r:.100}",
            param=f"{path}.arguments",
        ) from None


def _text(content: str | list[ContentPart] | None, path: str) -> str:
    if isinstance(content, str):
        return content
    if not content:
        raise RequestError(f"{path} must be text or a list of text parts", param=path)
    texts = []
    for i, part in enumerate(content):
        if part.type != "text":
            raise RequestError(
                f"{path}[{i}] is of type {part.type!r}; only text is supported yet",
                param=f"{path}[{i}].type",
            )
        if part.text is None:
            raise RequestError(f"{path}[{i}] has no text", param=f"{path}[{i}].text")
        texts.append(part.text)
    return "".join(texts)
