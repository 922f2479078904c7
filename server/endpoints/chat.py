"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from qwell.runtime.errors import RequestError
from qwell.runtime.messages import EngineInfo
from qwell.runtime.thinking import Thinking, thinking_of
from qwell.server.answer.call_grammar import call_grammar
from qwell.server.answer.forms import answer_form, call_format
from qwell.server.answer.parser import AnswerForm, end_of_answer
from qwell.server.answer.reasoning import OPEN
from qwell.server.generation import Delta, Generation, Job, check_prompt_fits
from qwell.server.json_body import JsonResponse, read_json
from qwell.server.protocol.chat import (
    ChatRequest,
    check_chat,
    requested_logprobs,
    requested_max_tokens,
    requested_tools,
)
from qwell.server.protocol.chat_answer import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChoiceParts,
    ChunkChoice,
    whole_message,
)
from qwell.server.protocol.chat_messages import template_messages
from qwell.server.protocol.common import (
    Usage,
    choice_params,
    includes_usage,
    is_obfuscated,
    new_id,
    place_of,
    usage,
)
from qwell.server.protocol.logprobs import chat_logprobs
from qwell.server.protocol.structured_outputs import RequestedGrammar, requested_grammar
from qwell.server.protocol.thinking import template_variables
from qwell.server.service import Service, TextSide, system_fingerprint
from qwell.server.sse import EventStream

_decoder = msgspec.json.Decoder(ChatRequest)
# More than the longest tag and white space behind it have, should they be cut into bytes.
_TAIL_TOKENS = 16


@dataclass(frozen=True)
class _Prompt:
    """A conversation as the model sees it, and what its answer will look like or has to.

    The answer is held to the last of `grammars`; one before it is a part of that, which a fault
    is to be blamed on.
    """

    ids: list[int]
    form: AnswerForm
    legacy: bool
    grammars: list[RequestedGrammar]
    thinking: Thinking | None


async def create_chat_completion(service: Service, request: Request) -> Response:
    """Answer a conversation, whole or streamed."""
    info = service.engine.ready_info()
    body = await read_json(request, _decoder, service.max_body_bytes)
    service.check_model(body.model)
    check_chat(body)
    prompt = await asyncio.to_thread(_prompt, body, service.text)
    logprobs = requested_logprobs(body)
    for grammar in prompt.grammars:
        await service.grammars.check(*grammar)
    params = choice_params(
        body,
        service.text.defaults,
        _max_tokens(body, prompt.ids, info),
        info.vocab_size,
        logprobs=logprobs,
        grammar=prompt.grammars[-1].grammar if prompt.grammars else None,
        thinking=prompt.thinking,
    )

    answer_id, created = new_id("chatcmpl"), int(time.time())
    fingerprint = system_fingerprint(info)
    place, tell_ids = place_of(body), bool(body.return_token_ids)
    jobs = [
        Job(prompt.ids, choice, *place, tell_ids, end_of_answer(prompt.form)) for choice in params
    ]
    generation = Generation(service.engine, service.text.tokenizer, jobs, prompt_param="messages")
    await generation.start()
    parts = [ChoiceParts(prompt.form, legacy=prompt.legacy) for _ in jobs]
    if body.stream:
        chunk = partial(
            ChatChunk,
            id=answer_id,
            created=created,
            model=body.model,
            system_fingerprint=fingerprint,
        )
        chunks = _chunks(chunk, generation, parts, includes_usage(body))
        return EventStream(generation, chunks, obfuscated=is_obfuscated(body))
    choices = await generation.texts()
    answer = ChatCompletion(
        id=answer_id,
        created=created,
        model=body.model,
        system_fingerprint=fingerprint,
        prompt_token_ids=prompt.ids if tell_ids else UNSET,
        choices=[
            ChatChoice(
                index,
                whole_message([*part.push(choice.text), *part.finish()]),
                part.finish_reason(choice.finish_reason),
                None if logprobs is None else chat_logprobs(service.text.tokenizer, choice.tokens),
                UNSET if choice.stop_reason is None else choice.stop_reason,
                choice.token_ids if tell_ids else UNSET,
            )
            for index, (choice, part) in enumerate(zip(choices, parts, strict=True))
        ],
        usage=_usage(generation, parts),
    )
    return JsonResponse(answer)


def _prompt(request: ChatRequest, text: TextSide) -> _Prompt:
    template = text.chat_template
    if template is None:
        raise RequestError(
            "the served checkpoint has no chat template (it is a base model); use /v1/completions",
            param="messages",
        )
    tools = requested_tools(request)
    calls = call_format(template, tools)
    content = requested_grammar(request, request.response_format)
    grammar = content if calls is None else call_grammar(calls, tools, content)
    # The same one twice is remembered.
    grammars = [wanted for wanted in (content, grammar) if wanted is not None]
    ids = template.encode(
        template_messages(request.messages, template.source),
        text.tokenizer,
        tools=tools.for_template,
        variables=template_variables(
            request.chat_template_kwargs, request.reasoning_effort, template
        ),
    )
    thinks, thinking = OPEN in template.source, None
    if request.thinking_budget is not None or (thinks and grammar is not None):
        thinking = thinking_of(ids, text.tokenizer, request.thinking_budget)
    form = answer_form(
        text.tokenizer.decode(ids[-_TAIL_TOKENS:], skip_special=False),
        # Where a grammar is for all of the answer, none of it is thinking.
        thinks=thinking is not None or (thinks and grammar is None),
        calls=calls,
        one_call=tools.one_call,
    )
    return _Prompt(ids, form, tools.legacy, grammars, thinking)


def _max_tokens(request: ChatRequest, prompt_ids: list[int], info: EngineInfo) -> int:
    """What was asked for, else the rest of the context, which must not be empty."""
    requested = requested_max_tokens(request)
    if requested is not None:
        return requested
    check_prompt_fits(prompt_ids, info, "messages", completion_tokens=1)
    return info.max_model_len - len(prompt_ids)


async def _chunks(
    answer: partial[ChatChunk],
    generation: Generation,
    parts: Sequence[ChoiceParts],
    with_usage: bool,
) -> AsyncIterator[ChatChunk]:
    chunk = partial(answer, usage=None if with_usage else UNSET)
    for index, job in enumerate(generation.jobs):
        first = chunk(choices=[ChunkChoice(index, ChatDelta(role="assistant", content=""))])
        if job.tell_ids and index == 0:
            first.prompt_token_ids = job.prompt_ids
        yield first
    async for delta in generation.deltas():
        for choice in _chunk_choices(generation, delta, parts[delta.index]):
            yield chunk(choices=[choice])
    if with_usage:
        yield answer(choices=[], usage=_usage(generation, parts))


def _chunk_choices(generation: Generation, delta: Delta, parts: ChoiceParts) -> list[ChunkChoice]:
    """One for each part of the answer that is certain now, and for the end; tokens are in one."""
    index = delta.index
    added = parts.push(delta.text)
    if delta.finish_reason is not None:
        added += parts.finish()
    choices = [ChunkChoice(index, part) for part in added]
    if (delta.tokens or delta.token_ids) and not choices:
        choices = [ChunkChoice(index, ChatDelta(content=""))]
    if delta.tokens:
        choices[0].logprobs = chat_logprobs(generation.tokenizer, delta.tokens)
    if delta.token_ids:
        choices[0].token_ids = delta.token_ids
    if delta.finish_reason is not None:
        reason = parts.finish_reason(delta.finish_reason)
        end = ChunkChoice(index, ChatDelta(), reason)
        if delta.stop_reason is not None:
            end.stop_reason = delta.stop_reason
        choices.append(end)
    return choices


def _usage(generation: Generation, parts: Sequence[ChoiceParts]) -> Usage:
    return usage(
        len(generation.jobs[0].prompt_ids),
        generation.completion_tokens,
        # The other choices find the prompt that the first has computed.
        generation.cached_tokens[0],
        sum(
            generation.tokens_of_start(index, part.thought_chars)
            for index, part in enumerate(parts)
        ),
    )
