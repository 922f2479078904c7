"""POST /v1/chat/completions: request and response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qwell.runtime.errors import RequestError
from qwell.runtime.messages import FinishReason
from qwell.server.protocol.common import (
    Count,
    SamplingRequest,
    TopCount,
    Usage,
    check_common,
    refuse_unsupported,
)
from qwell.server.protocol.logprobs import ChatLogprobs
from qwell.server.protocol.structured_outputs import ResponseFormat

_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_options": (None,),
    "reasoning_effort": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
_NEUTRAL_MESSAGE_VALUES: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "refusal": (None,),
    "tool_call_id": (None,),
    "tool_calls": (None, []),
}
# The newer name of the system role means the same to the models.
_TEMPLATE_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_LATER_ROLES = ("tool", "function")


# Whatever they are for: of OpenAI's own size.
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class ContentPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message; only text parts are supported yet."""

    type: str
    text: str | None = None
    image_url: object = None
    input_audio: object = None
    file: object = None
    refusal: object = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of the conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: object = None
    function_call: object = None
    tool_calls: object = None
    tool_call_id: str | None = None


class ChatRequest(SamplingRequest, kw_only=True):
    """Every field of OpenAI's, the additions of `SamplingRequest`, and `thinking_budget`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: str | None = None
    audio: object = None
    function_call: object = None
    functions: object = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    moderation: object = None
    prediction: object = None
    prompt_cache_options: object = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    service_tier: str | None = None
    store: bool | None = None
    thinking_budget: Count | None = None
    tool_choice: object = None
    tools: object = None
    top_logprobs: TopCount | None = None
    verbosity: str | None = None
    web_search_options: object = None


class AnswerMessage(msgspec.Struct):
    """The assistant's message."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One choice."""

    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(msgspec.Struct):
    """What a chunk adds: the role first, then content, nothing at the end."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """A piece of one choice."""

    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """One event of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


def check_chat(request: ChatRequest) -> None:
    """Checks that the field types do not express.

    Raises:
        RequestError: an unsupported field, or fields that contradict each other.
    """
    check_common(request)
    refuse_unsupported(request, _NEUTRAL_VALUES)
    requested_max_tokens(request)
    requested_logprobs(request)


def requested_max_tokens(request: ChatRequest) -> int | None:
    """`max_completion_tokens`, or its older name; None when neither is given.

    Raises:
        RequestError: both are given and differ.
    """
    older, newer = request.max_tokens, request.max_completion_tokens
    if older is not None and newer is not None and older != newer:
        raise RequestError(
            f"max_tokens ({older}) and max_completion_tokens ({newer}) mean the same and differ; "
            "give one",
            param="max_completion_tokens",
        )
    return older if newer is None else newer


def requested_logprobs(request: ChatRequest) -> int | None:
    """How many likely tokens are to be told beside each generated one; None tells neither.

    Raises:
        RequestError: `top_logprobs` without `logprobs`.
    """
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        message = "top_logprobs is only allowed together with logprobs: true"
        raise RequestError(message, param="top_logprobs")
    return None


def template_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The conversation as chat templates take it: role and text of each message.

    Raises:
        RequestError: a role, a field or a kind of content that is unknown or not supported yet.
    """
    return [
        _template_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)
    ]


def _template_message(message: Message, path: str) -> dict[str, Any]:
    refuse_unsupported(message, _NEUTRAL_MESSAGE_VALUES, f"{path}.")
    role = _TEMPLATE_ROLES.get(message.role)
    if role is None:
        problem = (
            "is not supported yet" if message.role in _LATER_ROLES else "is none of the known roles"
        )
        known = ", ".join(_TEMPLATE_ROLES)
        raise RequestError(
            f"{path}.role {message.role!r} {problem} ({known})", param=f"{path}.role"
        )
    return {"role": role, "content": _text(message.content, f"{path}.content")}


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
