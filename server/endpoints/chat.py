"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from qwell.runtime.errors import RequestError
from qwell.runtime.messages import EngineInfo
from qwell.runtime.thinking import thinking_of
from qwell.server.generation import Generation, Job, check_prompt_fits
from qwell.server.json_body import JsonResponse, read_json
from qwell.server.protocol.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
    ChunkChoice,
    check_chat,
    requested_logprobs,
    requested_max_tokens,
    template_messages,
)
from qwell.server.protocol.common import (
    Usage,
    choice_params,
    includes_usage,
    new_id,
    place_of,
    usage,
)
from qwell.server.protocol.logprobs import chat_logprobs
from qwell.server.protocol.structured_outputs import requested_grammar
from qwell.server.service import Service, system_fingerprint
from qwell.server.sse import EventStream

_decoder = msgspec.json.Decoder(ChatRequest)


async def create_chat_completion(service: Service, request: Request) -> Response:
    """Answer a conversation, whole or streamed."""
    info = service.engine.ready_info()
    body = await read_json(request, _decoder, service.max_body_bytes)
    service.check_model(body.model)
    check_chat(body)
    template = service.text.chat_template
    if template is None:
        raise RequestError(
            "the served checkpoint has no chat template (it is a base model); use /v1/completions",
            param="messages",
        )
    messages = template_messages(body)
    prompt_ids = await asyncio.to_thread(template.encode, messages, service.text.tokenizer)
    max_tokens = _max_tokens(body, prompt_ids, info)
    logprobs = requested_logprobs(body)
    grammar = requested_grammar(body.structured_outputs, body.response_format)
    if grammar is not None:
        await service.grammars.check(*grammar)
    thinking = None
    if grammar is not None or body.thinking_budget is not None:
        thinking = thinking_of(prompt_ids, service.text.tokenizer, body.thinking_budget)
    params = choice_params(
        body,
        service.text.defaults,
        max_tokens,
        info.vocab_size,
        logprobs=logprobs,
        grammar=None if grammar is None else grammar.grammar,
        thinking=thinking,
    )

    answer_id, created = new_id("chatcmpl"), int(time.time())
    fingerprint = system_fingerprint(info)
    jobs = [Job(prompt_ids, choice, *place_of(body)) for choice in params]
    generation = Generation(service.engine, service.text.tokenizer, jobs, prompt_param="messages")
    await generation.start()
    if body.stream:
        chunk = partial(
            ChatChunk,
            id=answer_id,
            created=created,
            model=body.model,
            system_fingerprint=fingerprint,
        )
        chunks = _chunks(chunk, generation, len(prompt_ids), includes_usage(body))
        return EventStream(generation, chunks)
    choices = await generation.texts()
    answer = ChatCompletion(
        id=answer_id,
        created=created,
        model=body.model,
        system_fingerprint=fingerprint,
        choices=[
            ChatChoice(
                index,
                AnswerMessage(choice.text),
                choice.finish_reason,
                None if logprobs is None else chat_logprobs(service.text.tokenizer, choice.tokens),
            )
            for index, choice in enumerate(choices)
        ],
        usage=_usage(len(prompt_ids), generation),
    )
    return JsonResponse(answer)


def _max_tokens(request: ChatRequest, prompt_ids: list[int], info: EngineInfo) -> int:
    """What was asked for, else the rest of the context, which must not be empty."""
    requested = requested_max_tokens(request)
    if requested is not None:
        return requested
    check_prompt_fits(prompt_ids, info, "messages", completion_tokens=1)
    return info.max_model_len - len(prompt_ids)


async def _chunks(
    answer: partial[ChatChunk], generation: Generation, prompt_tokens: int, with_usage: bool
) -> AsyncIterator[ChatChunk]:
    chunk = partial(answer, usage=None if with_usage else UNSET)
    for index in range(len(generation.jobs)):
        yield chunk(choices=[ChunkChoice(index, ChatDelta(role="assistant", content=""))])
    async for delta in generation.deltas():
        content = delta.text if delta.finish_reason is None else UNSET
        logprobs = chat_logprobs(generation.tokenizer, delta.tokens) if delta.tokens else None
        yield chunk(
            choices=[
                ChunkChoice(delta.index, ChatDelta(content=content), delta.finish_reason, logprobs)
            ]
        )
    if with_usage:
        yield answer(choices=[], usage=_usage(prompt_tokens, generation))


def _usage(prompt_tokens: int, generation: Generation) -> Usage:
    # The other choices find the prompt that the first has computed.
    cached_tokens = generation.cached_tokens[0]
    return usage(prompt_tokens, generation.completion_tokens, cached_tokens)
