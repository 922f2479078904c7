"""The JSON format of tool calls, that of Qwen2.5 and Qwen3:

{"name": "get_weather", "arguments": {"city": "Paris"}}
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from qwell.runtime.grammar import lark_text
from qwell.server.answer.lark import lark_choice, lark_json
from qwell.server.answer.reading import CallArguments, CallBegin, CallEnd, Reader, Source
from qwell.server.answer.tool_calls import CLOSE, OPEN
from qwell.server.protocol.tools import FunctionSpec

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([\w-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)', re.ASCII)
_LONGEST_HEAD = 256
_OBJECT_START = re.compile(r"\s*\{")
_SAY_MORE = {"additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"}
_TAIL = "}\n"
_CLOSING = re.compile(r"[\s}]*")


class JsonCalls:
    """Calls of declared functions in this format.

    Arguments are handed on as they come, and as the model writes them. They end with the bracket
    that closes them, or where no JSON goes on.
    """

    starts: tuple[str, ...] = ()

    def __init__(self, functions: Sequence[FunctionSpec]) -> None:
        self._functions = functions
        self._names = frozenset(function.name for function in functions)

    def read_call(self, source: Source) -> Reader[bool]:
        """See `CallFormat`."""
        while True:
            text = source.rest
            head = _HEAD.match(text, 0, _LONGEST_HEAD)
            if head:
                if head[1] not in self._names:
                    return False
                source.take(head.end())
                yield CallBegin(head[1])
                if (yield from _read_object(source)):
                    yield CallEnd()
                    yield from _skip_brackets(source)
                return True
            if len(text) >= _LONGEST_HEAD or CLOSE in text or source.ended:
                return (yield from _read_whole(source, self._names))
            if text.strip() and not _OBJECT_START.match(text):
                return False
            yield None

    def grammar(self) -> str:
        """See `CallFormat`."""
        calls = []
        for function in self._functions:
            head = lark_text(f'\n{{"name": "{function.name}", "arguments": ')
            arguments = lark_json(_closed(function), strict=bool(function.strict))
            calls.append(f"{head} {arguments} {lark_text(_TAIL)}")
        return lark_choice("call", calls)


def _closed(function: FunctionSpec) -> dict[str, Any]:
    """The schema of its arguments: with no more than those declared, if nothing else is said."""
    schema = {"type": "object", "properties": {}, **(function.parameters or {})}
    return schema if schema.keys() & _SAY_MORE else {**schema, "additionalProperties": False}


def _read_object(source: Source) -> Reader[bool]:
    """Read a JSON object as arguments; false where it is broken off."""
    depth = 0
    in_string = escaped = False
    while True:
        for end, char in enumerate(source.rest, 1):
            if escaped:
                escaped = False
            elif in_string:
                escaped = char == "\\"
                in_string = char != '"'
            elif char == '"':
                in_string = True
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
                if depth == 0:
                    yield CallArguments(source.take(end))
                    return True
            elif char == "<":
                if end > 1:
                    yield CallArguments(source.take(end - 1))
                return False
        if source.rest:
            yield CallArguments(source.take(len(source.rest)))
        if source.ended:
            return False
        yield None


def _skip_brackets(source: Source) -> Reader[None]:
    while True:
        closing = _CLOSING.match(source.rest)
        source.take(closing.end() if closing else 0)
        if source.rest or source.ended:
            return
        yield None


def _read_whole(source: Source, names: Collection[str]) -> Reader[bool]:
    """Read a call whose keys are not in the usual order, once it is whole."""
    while (end := source.rest.find(CLOSE)) < 0:
        if source.ended or OPEN in source.rest:
            return False
        yield None
    if OPEN in source.rest[:end]:
        return False
    call = _decoded(source.rest[:end]) or {}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = _decoded(arguments)
    name = call.get("name")
    if not isinstance(arguments, dict) or not isinstance(name, str) or name not in names:
        return False
    source.take(end)
    yield CallBegin(name)
    yield CallArguments(msgspec.json.encode(arguments).decode())
    yield CallEnd()
    return True


def _decoded(text: str) -> dict[str, Any] | None:
    """A JSON object; None where the text is none."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None
