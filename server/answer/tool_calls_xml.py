"""The XML-like format of tool calls, that of Qwen3-Coder and of Qwen3.5 and later:

    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>

Values are plain text; the declared schema says which of them are to become something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import msgspec

from qwell.server.answer.json_types import TEXT_ONLY, ParameterTypes, json_type
from qwell.server.answer.reading import (
    CallArguments,
    CallBegin,
    CallEnd,
    Reader,
    Source,
    read_until,
)

_HEAD = re.compile(r"\s*<function=([\w-]+)>", re.ASCII)
_NEXT = re.compile(r"\s*(?:<parameter=([^<>\n]+)>|</function>)")
_LONGEST_TAG = 256
_END_OF_VALUE = "</parameter>"
# The templates write values of JSON as Python does, and so do models that have learnt from them.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def read_xml_call(source: Source, functions: Mapping[str, ParameterTypes]) -> Reader[bool]:
    """Read a call of one of `functions`, their names with their parameters; see `ReadCall`.

    Arguments are handed on parameter by parameter, texts as they come. Only a call that its own
    closing tag ends has the bracket that ends the arguments.
    """
    head = yield from _read_tag(source, _HEAD, "<function=")
    if head is None or head[1] not in functions:
        return False
    source.take(head.end())
    yield CallBegin(head[1])
    types = functions[head[1]]
    before = "{"
    while (tag := (yield from _read_tag(source, _NEXT, "<"))) is not None:
        source.take(tag.end())
        name = tag[1]
        if name is None:
            yield CallArguments("{}" if before == "{" else "}")
            yield CallEnd()
            break
        yield CallArguments(f"{before}{json.dumps(name, ensure_ascii=False)}: ")
        before = ", "
        if not (yield from _read_value(source, types.of(name))):
            break
    return True


def _read_tag(source: Source, tag: re.Pattern[str], start: str) -> Reader[re.Match[str] | None]:
    """Find a tag at the beginning of the source; None where something else is there."""
    while True:
        found = tag.match(source.rest, 0, _LONGEST_TAG)
        if found:
            return found
        text = source.rest.lstrip()
        is_open = (text.startswith(start) and ">" not in text) or start.startswith(text)
        if source.ended or len(source.rest) >= _LONGEST_TAG or not is_open:
            return None
        yield None


def _read_value(source: Source, types: frozenset[str]) -> Reader[bool]:
    """Read a value as JSON, with the closing tag; false where the text ends without it."""
    while not source.rest and not source.ended:
        yield None
    if source.rest.startswith("\n"):
        source.take(1)
    if types == TEXT_ONLY:
        yield CallArguments('"')
        whole = yield from read_until(source, _END_OF_VALUE, _escaped, line_breaks=1)
        if whole:
            yield CallArguments('"')
        return whole
    while (end := source.rest.find(_END_OF_VALUE)) < 0:
        if source.ended:
            if source.rest:
                yield CallArguments(source.take(len(source.rest)))
            return False
        yield None
    text = source.take(end + len(_END_OF_VALUE))[:end]
    yield CallArguments(_value(text.removesuffix("\n"), types))
    return True


def _escaped(text: str) -> CallArguments:
    return CallArguments(json.dumps(text, ensure_ascii=False)[1:-1])


def _value(text: str, types: frozenset[str]) -> str:
    """The JSON of a value that may be more than a text."""
    value = text.strip()
    value = _PYTHON_WORDS.get(value, value)
    try:
        decoded = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        pass
    else:
        if json_type(decoded) in types:
            return value
    return json.dumps(text, ensure_ascii=False)
