"""The OpenAPI document, made of the types that requests are decoded into and answers made of."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from qwell import __version__
from qwell.server.endpoints.health import Health, Version
from qwell.server.errors import ErrorBody
from qwell.server.protocol.chat import ChatRequest
from qwell.server.protocol.chat_answer import ChatChunk, ChatCompletion
from qwell.server.protocol.completions import Completion, CompletionRequest
from qwell.server.protocol.models import ModelCard, ModelList
from qwell.server.protocol.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)

_REF = "#/components/schemas/{name}"
_JSON = "application/json"
_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Operation:
    """One route of the API: what goes in, what comes out, as JSON or with `chunk` as events."""

    method: str
    path: str
    summary: str
    answer: type
    body: type | None = None
    chunk: type | None = None


OPERATIONS = (
    Operation(
        *("post", "/v1/chat/completions", "Answer a conversation", ChatCompletion),
        body=ChatRequest,
        chunk=ChatChunk,
    ),
    Operation(
        *("post", "/v1/completions", "Continue prompts", Completion),
        body=CompletionRequest,
        chunk=Completion,
    ),
    Operation("get", "/v1/models", "List the models", ModelList),
    Operation("get", "/v1/models/{model_id}", "Show one model", ModelCard),
    Operation(
        *("post", "/tokenize", "Turn a text into token ids", TokenizeAnswer), body=TokenizeRequest
    ),
    Operation(
        *("post", "/detokenize", "Turn token ids into a text", DetokenizeAnswer),
        body=DetokenizeRequest,
    ),
    Operation("get", "/health", "Say whether requests can run", Health),
    Operation("get", "/version", "Say which qwell this is", Version),
)


def openapi_document() -> dict[str, Any]:
    """The document, in version 3.1 of OpenAPI."""
    types = {part for op in OPERATIONS for part in (op.answer, op.body, op.chunk) if part}
    _, schemas = msgspec.json.schema_components(
        sorted({*types, ErrorBody}, key=lambda part: part.__name__),
        schema_hook=_any_json,
        ref_template=_REF,
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwell", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {name: _with_plain_text(schema) for name, schema in schemas.items()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "user": {"type": "http", "scheme": "basic"},
            },
        },
        "security": [{}, {"key": []}, {"user": []}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    content = {_JSON: {"schema": _ref(operation.answer)}}
    if operation.chunk is not None:
        events = f"server-sent events, each a {operation.chunk.__name__}, the last [DONE]"
        # Without a type: some readers of the document take the text for it, others each event.
        content["text/event-stream"] = {"schema": {"description": events}}
    failure = {"description": "An error", "content": {_JSON: {"schema": _ref(ErrorBody)}}}
    success = {"description": "The answer", "content": content}
    responses = {"200": success, "4XX": failure, "5XX": failure}
    if operation.answer is Health:
        responses["503"] = {**success, "description": "Requests cannot run now"}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if names := _PARAMETER.findall(operation.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": _ref(operation.body)}},
        }
    return described


def _ref(part: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=part.__name__)}


def _any_json(part: type) -> dict[str, Any]:
    """The schema of a field that takes any JSON value, and is looked at later if at all."""
    if part is not object:
        raise NotImplementedError  # msgspec then says which type has no schema
    return {"description": "any JSON value"}


def _with_plain_text(schema: dict[str, Any]) -> dict[str, Any]:
    """Docstrings lose the indentation that they have in the source."""
    if "description" in schema:
        return {**schema, "description": inspect.cleandoc(schema["description"])}
    return schema
