"""POST /v1/chat/completions: request and response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from qwell.runtime.errors import RequestError
from qwell.server.protocol.chat_messages import Message
from qwell.server.protocol.common import (
    Count,
    SamplingRequest,
    TopCount,
    check_common,
    refuse_unsupported,
)
from qwell.server.protocol.structured_outputs import ResponseFormat
from qwell.server.protocol.thinking import ChatTemplateOptions, Effort
from qwell.server.protocol.tools import (
    FunctionChoice,
    FunctionSpec,
    Tool,
    ToolChoice,
    ToolUse,
    used_functions,
    used_tools,
)

_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_options": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}

# Whatever they are for: of OpenAI's own size.
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class ChatRequest(SamplingRequest, kw_only=True):
    """Every field of OpenAI's, the additions of `SamplingRequest`, `chat_template_kwargs` and
    `thinking_budget`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    safety_identifier: str | None = None
    audio: object = None
    function_call: FunctionChoice | None = None
    functions: list[FunctionSpec] | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    moderation: object = None
    prediction: object = None
    prompt_cache_options: object = None
    chat_template_kwargs: ChatTemplateOptions | None = None
    reasoning_effort: Effort | None = None
    response_format: ResponseFormat | None = None
    service_tier: str | None = None
    store: bool | None = None
    thinking_budget: Count | None = None
    tool_choice: ToolChoice | None = None
    tools: list[Tool] | None = None
    top_logprobs: TopCount | None = None
    verbosity: str | None = None
    web_search_options: object = None


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


def requested_tools(request: ChatRequest) -> ToolUse:
    """The functions that may be called.

    Raises:
        RequestError: tools in both of their forms, or what the checks of either refuse.
    """
    if request.functions is None and request.function_call is None:
        return used_tools(request.tools, request.tool_choice, request.parallel_tool_calls)
    if request.tools or request.tool_choice is not None:
        raise RequestError(
            "functions and function_call are the older form of tools and tool_choice; give one "
            "form only",
            param="functions",
        )
    return used_functions(request.functions, request.function_call)
