"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from qwell.runtime.errors import RequestError
from qwell.runtime.tokenizer import Tokenizer
from qwell.server.generation import ChoiceText, Generation, Job, ScoredToken
from qwell.server.json_body import JsonResponse, read_json
from qwell.server.protocol.common import (
    Usage,
    choice_params,
    includes_usage,
    is_obfuscated,
    new_id,
    place_of,
    usage,
)
from qwell.server.protocol.completions import (
    DEFAULT_MAX_TOKENS,
    Completion,
    CompletionChoice,
    CompletionRequest,
    check_completion,
    computed_choices,
    computed_logprobs,
    prompts_of,
)
from qwell.server.protocol.logprobs import CompletionLogprobs, CompletionScores
from qwell.server.protocol.structured_outputs import requested_grammar
from qwell.server.service import Service, system_fingerprint
from qwell.server.sse import EventStream

_decoder = msgspec.json.Decoder(CompletionRequest)


async def create_completion(service: Service, request: Request) -> Response:
    """Continue one or more prompts, whole or streamed."""
    info = service.engine.ready_info()
    body = await read_json(request, _decoder, service.max_body_bytes)
    service.check_model(body.model)
    check_completion(body)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    grammar = requested_grammar(body)
    if grammar is not None:
        await service.grammars.check(*grammar)
    each = computed_choices(body)
    params = choice_params(
        body,
        service.text.defaults,
        max_tokens,
        info.vocab_size,
        logprobs=computed_logprobs(body),
        prompt_logprobs=body.logprobs if body.echo else None,
        grammar=None if grammar is None else grammar.grammar,
        count=each,
    )
    prompts = prompts_of(body)
    tokenizer = service.text.tokenizer
    encoded = await asyncio.to_thread(_encode, tokenizer, prompts)

    answer = partial(
        Completion,
        id=new_id("cmpl"),
        created=int(time.time()),
        model=body.model,
        system_fingerprint=system_fingerprint(info),
    )
    place, tell_ids = place_of(body), bool(body.return_token_ids)
    jobs = [
        Job(prompt_ids, choice, *place, tell_ids) for prompt_ids in encoded for choice in params
    ]
    generation = Generation(service.engine, tokenizer, jobs, prompt_param="prompt")
    await generation.start()
    count = partial(_usage, generation, sum(map(len, encoded)), each)
    echoes = _echoes(tokenizer, prompts, each) if body.echo else [""] * len(jobs)
    if body.stream:
        chunks = _chunks(answer, generation, echoes, count if includes_usage(body) else None)
        return EventStream(generation, chunks, obfuscated=is_obfuscated(body))
    choices = await _whole(generation, echoes, body)
    return JsonResponse(answer(choices=choices, usage=count()))


def _usage(generation: Generation, prompt_tokens: int, choices_each: int) -> Usage:
    # The other choices find the prompt that the first has computed.
    cached_tokens = sum(generation.cached_tokens[::choices_each])
    return usage(prompt_tokens, generation.completion_tokens, cached_tokens)


def _encode(tokenizer: Tokenizer, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    encoded = [
        tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts
    ]
    for index, prompt_ids in enumerate(encoded):
        if not prompt_ids:
            which = f"prompt[{index}]" if len(encoded) > 1 else "prompt"
            raise RequestError(f"{which} is empty; it must have at least one token", param="prompt")
    return encoded


def _echoes(
    tokenizer: Tokenizer, prompts: Sequence[str | list[int]], choices_each: int
) -> list[str]:
    """The text of the prompt of every choice."""
    texts = [
        prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special=False)
        for prompt in prompts
    ]
    return [text for text in texts for _ in range(choices_each)]


async def _whole(
    generation: Generation, echoes: Sequence[str], body: CompletionRequest
) -> list[CompletionChoice]:
    choices = await generation.texts()
    all_scores = _scores(generation, echoes)
    told: list[CompletionChoice] = []
    for place in _best(choices, computed_choices(body), body.n or 1):
        choice, scores, logprobs = choices[place], all_scores[place], None
        if body.logprobs is not None and scores is not None:
            logprobs = _prompt_logprobs(generation, choice.prompt) + scores.piece(choice.tokens)
        text = echoes[place] + choice.text
        answer = CompletionChoice(text, len(told), choice.finish_reason, logprobs)
        if choice.stop_reason is not None:
            answer.stop_reason = choice.stop_reason
        if body.return_token_ids:
            answer.token_ids = choice.token_ids
            answer.prompt_token_ids = generation.jobs[place].prompt_ids
        told.append(answer)
    return told


def _best(choices: Sequence[ChoiceText], each: int, n: int) -> Sequence[int]:
    """Places of the `n` of every `each` choices with the highest log-probability per token."""
    places = range(len(choices))
    if each == n:
        return places

    def score(place: int) -> float:
        scores = [token.score.logprob for token in choices[place].tokens if token.score]
        return sum(scores) / len(scores) if scores else 0.0

    groups = [places[first : first + each] for first in places[::each]]
    return [place for group in groups for place in sorted(group, key=score, reverse=True)[:n]]


async def _chunks(
    answer: partial[Completion],
    generation: Generation,
    echoes: Sequence[str],
    count: Callable[[], Usage] | None,
) -> AsyncIterator[Completion]:
    chunk = partial(answer, usage=UNSET if count is None else None)
    all_scores = _scores(generation, echoes)
    for index, (echo, job) in enumerate(zip(echoes, generation.jobs, strict=True)):
        ids = job.prompt_ids if job.tell_ids else UNSET
        if (echo and job.params.prompt_logprobs is None) or ids is not UNSET:
            text = echo if job.params.prompt_logprobs is None else ""
            yield chunk(choices=[CompletionChoice(text, index, prompt_token_ids=ids)])
    async for delta in generation.deltas():
        text, scores = delta.text, all_scores[delta.index]
        logprobs = None
        if delta.prompt:
            text = echoes[delta.index]
            logprobs = _prompt_logprobs(generation, delta.prompt)
        elif delta.tokens and scores is not None:
            logprobs = scores.piece(delta.tokens)
        token_ids = delta.token_ids or UNSET
        choice = CompletionChoice(text, delta.index, delta.finish_reason, logprobs, token_ids)
        if delta.stop_reason is not None:
            choice.stop_reason = delta.stop_reason
        yield chunk(choices=[choice])
    if count is not None:
        yield answer(choices=[], usage=count())


def _scores(generation: Generation, echoes: Sequence[str]) -> list[CompletionScores | None]:
    """For each choice what makes the log-probabilities of its tokens, where they are asked for."""
    return [
        None if job.params.logprobs is None else CompletionScores(generation.tokenizer, len(echo))
        for job, echo in zip(generation.jobs, echoes, strict=True)
    ]


def _prompt_logprobs(generation: Generation, prompt: Sequence[ScoredToken]) -> CompletionLogprobs:
    return CompletionScores(generation.tokenizer, skip_special=False).piece(prompt)
