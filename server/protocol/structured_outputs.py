"""What an answer is to look like: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import ANY_JSON_OBJECT, Grammar

_GBNF_RULE = re.compile(r"[ \t]*[\w-]+[ \t]*::=")


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True):
    """A schema and its name, which changes nothing. It is enforced whatever `strict` is."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """`response_format` of a chat completion."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """`structured_outputs`; exactly one field is given. `grammar` is Lark, or GBNF."""

    json: dict[str, Any] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class RequestedGrammar(NamedTuple):
    """A grammar, and the path of the field that it came in."""

    grammar: Grammar
    param: str


def requested_grammar(
    structured_outputs: StructuredOutputs | None, response_format: ResponseFormat | None = None
) -> RequestedGrammar | None:
    """What the text must match; None where it may be anything. Whether it can be used is not seen.

    Raises:
        RequestError: the fields contradict each other, or leave out what is needed.
    """
    formatted = None if response_format is None else _of_format(response_format)
    if structured_outputs is None:
        return formatted
    if formatted is not None:
        raise RequestError(
            "response_format and structured_outputs both say what the text must be; give one",
            param="structured_outputs",
        )
    return _of_outputs(structured_outputs)


def _of_format(wanted: ResponseFormat) -> RequestedGrammar | None:
    if wanted.json_schema is not None and wanted.type != "json_schema":
        raise RequestError(
            f"response_format.json_schema is only allowed with type json_schema, not {wanted.type}",
            param="response_format.json_schema",
        )
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return RequestedGrammar(ANY_JSON_OBJECT, "response_format")
    if wanted.json_schema is None:
        raise RequestError(
            "response_format of type json_schema must have a json_schema",
            param="response_format.json_schema",
        )
    schema = wanted.json_schema.schema
    return RequestedGrammar(
        _json_schema({} if schema is None else schema), "response_format.json_schema.schema"
    )


def _of_outputs(wanted: StructuredOutputs) -> RequestedGrammar:
    grammars = {
        "json": None if wanted.json is None else _json_schema(wanted.json),
        "regex": None if wanted.regex is None else Grammar("regex", wanted.regex),
        "choice": None if wanted.choice is None else Grammar.choice(wanted.choice),
        "grammar": None if wanted.grammar is None else _lark_or_gbnf(wanted.grammar),
        "json_object": ANY_JSON_OBJECT if wanted.json_object else None,
    }
    given = [(grammar, name) for name, grammar in grammars.items() if grammar is not None]
    if len(given) != 1:
        raise RequestError(
            f"structured_outputs must have exactly one of {', '.join(grammars)}",
            param="structured_outputs",
        )
    [(grammar, name)] = given
    return RequestedGrammar(grammar, f"structured_outputs.{name}")


def _json_schema(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", msgspec.json.encode(schema).decode())


def _lark_or_gbnf(text: str) -> Grammar:
    is_gbnf = any(_GBNF_RULE.match(line) for line in text.splitlines())
    return Grammar("gbnf" if is_gbnf else "lark", text)
