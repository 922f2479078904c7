"""The choices of one API request, from prompt ids to pieces of text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from uuid import uuid4

import msgspec

from qwell.runtime.errors import EngineDeadError, ModelError, RequestError
from qwell.runtime.messages import (
    Accepted,
    Add,
    EngineInfo,
    FinishReason,
    Rejected,
    TokenLogprob,
    TokenOutput,
)
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.text_stream import TextStream
from qwell.runtime.tokenizer import Tokenizer
from qwell.server.engine_client import EngineClient, EngineEvent
from qwell.server.inbox import Inbox


@dataclass(frozen=True)
class Job:
    """One completion to compute; see `Engine.add`. With `tell_ids` its deltas have token ids.

    `is_over` is given the text as it comes, and says when no more of it is wanted.
    """

    prompt_ids: list[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    tell_ids: bool = False
    is_over: Callable[[str], bool] | None = None


class ScoredToken(NamedTuple):
    """A token and its log-probability; the first of a prompt has none."""

    token_id: int
    score: TokenLogprob | None


class Delta(msgspec.Struct, frozen=True):
    """A piece of the choice `index`: some text, or the reason of its end (and no text).

    Attributes:
        tokens: those that came with it, if their log-probabilities are asked for. The text of
            the last ones may still be held back.
        token_ids: the same without the log-probabilities, if they are asked for.
        prompt: the whole prompt, once, before all text, if its log-probabilities are asked for.
        stop_reason: with a `finish_reason`: the stop string or the one of `stop_token_ids` that
            has ended the text, if one has.
    """

    index: int
    text: str
    finish_reason: FinishReason | None = None
    tokens: Sequence[ScoredToken] = ()
    token_ids: Sequence[int] = ()
    prompt: Sequence[ScoredToken] = ()
    stop_reason: str | int | None = None


@dataclass
class ChoiceText:
    """A whole choice, with what its deltas have."""

    text: str = ""
    finish_reason: FinishReason = "length"
    tokens: list[ScoredToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt: list[ScoredToken] = field(default_factory=list)
    stop_reason: str | int | None = None


@dataclass
class _Running:
    request_id: str
    text: TextStream
    job: Job
    # Of its prompt, as far as it is known; None where it is not asked for, or has been told.
    prompt: list[ScoredToken] | None
    # How long the text was after each token.
    ends: list[int] = field(default_factory=list)
    ended: bool = False


@dataclass
class Generation:
    """Jobs that run side by side: the choices of one answer, in order.

    `prompt_param` names the request field that an error about the prompt is blamed on. A
    generation that has started runs until its deltas end or `cancel` is called.

    Attributes:
        completion_tokens: tokens generated so far, of all choices; tokens behind a stop string,
            or after all that is wanted, do not count.
        cached_tokens: prompt tokens of each choice that were found in the prefix cache, known
            with its first token.
    """

    engine: EngineClient
    tokenizer: Tokenizer
    jobs: Sequence[Job]
    prompt_param: str
    completion_tokens: int = 0
    cached_tokens: list[int] = field(init=False)
    _choices: list[_Running] = field(default_factory=list)
    _events: Inbox = field(default_factory=Inbox)

    def __post_init__(self) -> None:
        self.cached_tokens = [0] * len(self.jobs)

    async def start(self) -> None:
        """Hand all jobs to the engine; returns once it has accepted every one.

        Raises:
            RequestError: the engine refuses a job; none runs on.
            EngineLoadingError, EngineDeadError: no engine is running, or it has just died.
        """
        info = self.engine.ready_info()
        for job in self.jobs:
            check_prompt_fits(job.prompt_ids, info, self.prompt_param)
        try:
            for index, job in enumerate(self.jobs):
                self._add(index, job)
            await self._all_accepted()
        except BaseException:
            self.cancel()
            raise

    async def deltas(self) -> AsyncIterator[Delta]:
        """What the choices give, as it comes; choices interleave.

        Raises:
            RequestError: a choice cannot go on: its grammar and its bans leave no token.
            ModelError: what the model computes for a choice is no answer.
            EngineDeadError: the engine died; nothing more comes.
        """
        running = len(self._choices)
        while running:
            index, event = await self._events.get()
            for delta in self._advance(index, event):
                running -= delta.finish_reason is not None
                yield delta

    async def texts(self) -> list[ChoiceText]:
        """All choices, when the last has ended; none runs on. Raises what `deltas` raises."""
        choices = [ChoiceText() for _ in self.jobs]
        pieces: list[list[str]] = [[] for _ in self.jobs]
        try:
            async for delta in self.deltas():
                choice = choices[delta.index]
                pieces[delta.index].append(delta.text)
                choice.tokens += delta.tokens
                choice.token_ids += delta.token_ids
                choice.prompt += delta.prompt
                if delta.finish_reason is not None:
                    choice.finish_reason = delta.finish_reason
                    choice.stop_reason = delta.stop_reason
        finally:
            self.cancel()
        for choice, texts in zip(choices, pieces, strict=True):
            choice.text = "".join(texts)
        return choices

    def tokens_of_start(self, index: int, length: int) -> int:
        """How many tokens the first `length` characters of a choice took."""
        ends = self._choices[index].ends
        return min(bisect_left(ends, length) + 1, len(ends)) if length else 0

    def cancel(self) -> None:
        """Have the engine drop what still runs."""
        for choice in self._choices:
            if not choice.ended:
                choice.ended = True
                self.engine.abort(choice.request_id)

    def _add(self, index: int, job: Job) -> None:
        request_id = uuid4().hex
        params = job.params
        text = TextStream(self.tokenizer, params.stop, params.include_stop_str_in_output)
        first = [ScoredToken(job.prompt_ids[0], None)]
        prompt = None if params.prompt_logprobs is None else first
        self._choices.append(_Running(request_id, text, job, prompt))
        self.engine.add(
            Add(request_id, job.prompt_ids, job.params, job.priority, job.cache_salt),
            partial(self._events.put, index),
        )

    async def _all_accepted(self) -> None:
        missing = len(self._choices)
        early: list[tuple[int, EngineEvent]] = []
        while missing:
            index, event = await self._events.get()
            if isinstance(event, Accepted):
                missing -= 1
            elif isinstance(event, Rejected):
                param = self.prompt_param if event.param == "prompt" else event.param
                raise RequestError(event.message, param=param, code=event.code)
            elif isinstance(event, EngineDeadError):
                raise event
            else:
                early.append((index, event))
        self._events.put_back(early)

    def _advance(self, index: int, event: EngineEvent) -> list[Delta]:
        """Take one event of the engine in; what it adds to the answer."""
        choice = self._choices[index]
        if choice.ended:
            return []
        if isinstance(event, EngineDeadError):
            raise event
        if isinstance(event, Accepted | Rejected):
            raise RuntimeError(f"{choice.request_id}: {event} after it was accepted")
        if event.error is not None:
            choice.ended = True
            raise ModelError(event.error) if event.is_fault else RequestError(event.error)
        self.cached_tokens[index] += event.cached_tokens
        prompt = _told_prompt(choice, event)
        finish_reason = event.finish_reason
        text, length = "", choice.ends[-1] if choice.ends else 0
        scores = event.logprobs.tokens() if event.logprobs else ()
        count = 0
        is_over = choice.job.is_over
        for token_id in event.token_ids:
            added = choice.text.push([token_id])
            text += added
            choice.ends.append(length + len(text))
            count += 1
            if choice.text.stopped or (is_over is not None and is_over(added)):
                finish_reason = "stop"
                self.engine.abort(choice.request_id, finish_reason)
                break
        self.completion_tokens += count
        tokens = [*map(ScoredToken, event.token_ids[:count], scores)]
        token_ids = event.token_ids[:count] if choice.job.tell_ids else ()
        if finish_reason is not None:
            choice.ended = True
            text += choice.text.finish()
        deltas = [Delta(index, "", prompt=prompt)] if prompt else []
        if text or tokens or token_ids:
            deltas.append(Delta(index, text, tokens=tokens, token_ids=token_ids))
        if finish_reason is not None:
            last_ids = event.token_ids[:count][-1:]
            stop_reason = _stop_reason(choice, last_ids) if finish_reason == "stop" else None
            deltas.append(Delta(index, "", finish_reason, stop_reason=stop_reason))
        return deltas


def _stop_reason(choice: _Running, last_ids: Sequence[int]) -> str | int | None:
    """What the request named and the last token, if there is one, has brought about: its end."""
    if choice.text.stopped:
        return choice.text.stop_string
    for token_id in last_ids:
        if token_id in choice.job.params.stop_token_ids:
            return token_id
    return None


def _told_prompt(choice: _Running, event: TokenOutput) -> Sequence[ScoredToken]:
    """The scored prompt of a choice, when the event brings the last of it; else nothing."""
    prompt, ids = choice.prompt, choice.job.prompt_ids
    if prompt is None:
        return ()
    if event.prompt_logprobs is not None:
        prompt += map(ScoredToken, ids[len(prompt) :], event.prompt_logprobs.tokens())
    if len(prompt) < len(ids):
        return ()
    choice.prompt = None
    return prompt


def check_prompt_fits(
    prompt_ids: Sequence[int], info: EngineInfo, param: str, completion_tokens: int = 0
) -> None:
    """Refuse a prompt that leaves no room for `completion_tokens`.

    The engine checks the same, but an endless prompt should not take up the pipe to it first.

    Raises:
        RequestError: naming `param`, with both numbers.
    """
    limit = info.max_model_len
    if len(prompt_ids) + completion_tokens > limit:
        raise RequestError(
            # Clients that see no code know it by the first words.
            f"the prompt is too long: it has {len(prompt_ids)} tokens, and this model's maximum "
            f"context length is {limit} tokens",
            param=param,
            code="context_length_exceeded",
        )
