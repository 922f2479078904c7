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


Schema = dict[str, Any] | str  # or its text
Choices = Annotated[list[str], Meta(min_length=1)]


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """`structured_outputs`; exactly one field is given. `grammar` is Lark, or GBNF."""

    json: Schema | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StructuredRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields of both request types that say what the text must be: vLLM's, of which `guided_*`
    are its older names, which many programs still send."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None


class RequestedGrammar(NamedTuple):
    """A grammar, and the path of the field that it came in."""

    grammar: Grammar
    param: str


def requested_grammar(
    request: StructuredRequest, response_format: ResponseFormat | None = None
) -> RequestedGrammar | None:
    """What the text must match; None where it may be anything. Whether it can be used is not seen.

    Raises:
        RequestError: the fields contradict each other, or leave out what is needed.
    """
    older = StructuredOutputs(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
    )
    wanted = [
        *_of_format(response_format or ResponseFormat("text")),
        *_of_outputs(request.structured_outputs),
        *_each(older, "guided_"),
    ]
    if len(wanted) > 1:
        first, second = (each.param.split(".")[0] for each in wanted[:2])
        raise RequestError(
            f"{first} and {second} both say what the text must be; give one", param=second
        )
    return wanted[0] if wanted else None


def _of_format(wanted: ResponseFormat) -> list[RequestedGrammar]:
    if wanted.json_schema is not None and wanted.type != "json_schema":
        raise RequestError(
            f"response_format.json_schema is only allowed with type json_schema, not {wanted.type}",
            param="response_format.json_schema",
        )
    if wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [RequestedGrammar(ANY_JSON_OBJECT, "response_format")]
    if wanted.json_schema is None:
        raise RequestError(
            "response_format of type json_schema must have a json_schema",
            param="response_format.json_schema",
        )
    param = "response_format.json_schema.schema"
    return [RequestedGrammar(_json_schema(wanted.json_schema.schema or {}, param), param)]


def _of_outputs(wanted: StructuredOutputs | None) -> list[RequestedGrammar]:
    if wanted is None:
        return []
    given = _each(wanted, "structured_outputs.")
    if len(given) != 1:
        raise RequestError(
            f"structured_outputs must have exactly one of {', '.join(wanted.__struct_fields__)}",
            param="structured_outputs",
        )
    return given


def _each(wanted: StructuredOutputs, prefix: str) -> list[RequestedGrammar]:
    grammars = {
        "json": None if wanted.json is None else _json_schema(wanted.json, f"{prefix}json"),
        "regex": None if wanted.regex is None else Grammar("regex", wanted.regex),
        "choice": None if wanted.choice is None else Grammar.choice(wanted.choice),
        "grammar": None if wanted.grammar is None else _lark_or_gbnf(wanted.grammar),
        "json_object": ANY_JSON_OBJECT if wanted.json_object else None,
    }
    return [
        RequestedGrammar(grammar, prefix + name)
        for name, grammar in grammars.items()
        if grammar is not None
    ]


def _json_schema(schema: Schema, param: str) -> Grammar:
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise RequestError(
                f"{param} is no text of a JSON schema: {error}", param=param
            ) from error
    return Grammar("json_schema", msgspec.json.encode(schema).decode())


def _lark_or_gbnf(text: str) -> Grammar:
    is_gbnf = any(_GBNF_RULE.match(line) for line in text.splitlines())
    return Grammar("gbnf" if is_gbnf else "lark", text)
