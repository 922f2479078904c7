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
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from qwell.runtime.grammar import lark_text
from qwell.server.answer.json_types import (
    TEXT_ONLY,
    ParameterTypes,
    json_type,
    parameter_types,
    resolved,
)
from qwell.server.answer.lark import lark_choice, lark_json
from qwell.server.answer.reading import (
    CallArguments,
    CallBegin,
    CallEnd,
    Reader,
    Source,
    read_until,
)
from qwell.server.answer.xml_texts import ANNOTATIONS, held_text
from qwell.server.protocol.tools import FunctionSpec

_START = "<function="
_HEAD = re.compile(r"\s*<function=([\w-]+)>", re.ASCII)
_NEXT = re.compile(r"\s*(?:<parameter=([^<>\n]+)>|</function>)")
_PARAMETER = "<parameter="
_CUT_PARAMETER = re.compile(r"<parameter=[^<>\n]*")
_LONGEST_TAG = 256
_END_OF_VALUE = "</parameter>"
_NAME = re.compile(r"[^<>\n]+")
# A text ends with the first closing tag, whatever else it is.
_TEXT_RULE = r"text[lazy]: /(?s:.*)<\/parameter>/"
_FEW_VALUES: Mapping[str, list[Any]] = {"null": [None], "boolean": [True, False]}
# The templates write values of JSON as Python does, and so do models that have learnt from them.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


class XmlCalls:
    """Calls of declared functions in this format.

    Arguments are handed on parameter by parameter, texts as they come. Only a call that its own
    closing tag ends has the bracket that ends the arguments.
    """

    # Qwen3-Coder often leaves the tag in front of it out.
    starts: tuple[str, ...] = (_START,)

    def __init__(self, functions: Sequence[FunctionSpec]) -> None:
        self._functions = functions
        self._types = {
            function.name: parameter_types(function.parameters or {}) for function in functions
        }

    def read_call(self, source: Source) -> Reader[bool]:
        """See `CallFormat`."""
        head = yield from _read_tag(source, _HEAD, _START)
        if head is None or head[1] not in self._types:
            return False
        source.take(head.end())
        yield CallBegin(head[1])
        types = self._types[head[1]]
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
        else:
            if source.ended and _is_cut_off(source.rest.lstrip()):
                source.take(len(source.rest))
        return True

    def grammar(self) -> str:
        """See `CallFormat`. Parameters come in the order of their declaration."""
        texts: dict[str, str] = {}
        calls = [
            _call_rule(function, self._types[function.name], texts) for function in self._functions
        ]
        held = (f"{name}: {terminal}" for terminal, name in texts.items())
        return "\n".join([lark_choice("call", calls), _TEXT_RULE, *held])


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


def _is_cut_off(text: str) -> bool:
    """Whether it may be the beginning of a tag within a call."""
    if any(tag.startswith(text) for tag in (_PARAMETER, "</function>")):
        return True
    return _CUT_PARAMETER.fullmatch(text) is not None


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


def _call_rule(function: FunctionSpec, types: ParameterTypes, texts: dict[str, str]) -> str:
    """A call; the terminals that it needs are added to `texts`, with their names."""
    schema = function.parameters or {}
    required = schema.get("required", [])
    parts = [lark_text(f"\n<function={function.name}>\n")]
    for name in dict.fromkeys([*schema.get("properties", {}), *required]):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{function.name}: the parameter {name!r} cannot be written")
        begin, end = lark_text(f"<parameter={name}>\n"), lark_text("\n")
        value = _value_rule(function, name, types.of(name), texts)
        parts.append(f"({begin} {value} {end}){'' if name in required else '?'}")
    return " ".join([*parts, lark_text("</function>\n")])


def _value_rule(
    function: FunctionSpec, name: str, types: frozenset[str], texts: dict[str, str]
) -> str:
    """A value and its closing tag. Little can be said of texts that are not listed."""
    root = function.parameters or {}
    schema = resolved(root.get("properties", {}).get(name), root)
    end = f"\n{_END_OF_VALUE}"
    if "string" not in types:
        definitions = {key: root.get(key, {}) for key in ("$defs", "definitions")}
        value = lark_json({**definitions, **schema}, strict=bool(function.strict))
        return f"{value} {lark_text(end)}"
    parts = [resolved(part, root) for part in schema.get("anyOf", [])] or [schema]
    values = [value for part in parts for value in _listed(part) or ()]
    rules = [lark_text(_written(value) + end) for value in values]
    others = [part for part in parts if _listed(part) is None]
    beside = schema.keys() - {"anyOf"} if schema not in parts else set()
    said = {key for part in parts for key in part} | beside
    if others and (not function.strict or said <= ANNOTATIONS):
        return "text"
    # What is read as JSON may be another number than those listed, but no other null.
    can_be_held = beside <= ANNOTATIONS and all(v is None or isinstance(v, str) for v in values)
    for part in others:
        terminal = held_text(part) if can_be_held else None
        if terminal is None:
            raise ValueError(
                f"{function.name} is strict, but a text in the format of this model can be held to "
                "enum, const, minLength and maxLength up to 256, or the format date, time, "
                f"date-time or uuid alone; the parameter {name!r} says more"
            )
        rules.append(texts.setdefault(terminal, f"TEXT{len(texts)}"))
    return f"({' | '.join(rules)})"


def _listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values of a schema that has but a few; None where there are more."""
    if "const" in schema:
        return [schema["const"]]
    if isinstance(schema.get("enum"), list):
        return list(schema["enum"])
    kind = schema.get("type")
    return _FEW_VALUES.get(kind) if isinstance(kind, str) else None


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
