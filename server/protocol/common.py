"""What completions and chat completions share on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Meta

from qwell.runtime.checkpoint.generation_config import GenerationDefaults
from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import Grammar
from qwell.runtime.sampling_params import (
    MAX_LOGPROBS,
    SEED_RANGE,
    SamplingParams,
    check_token_ids,
)
from qwell.runtime.thinking import Thinking
from qwell.server.protocol.structured_outputs import StructuredRequest

T = TypeVar("T")

MAX_CHOICES = 128
MAX_BIASES = 1024
MAX_STOP_TOKEN_IDS = 128
_MOST_DIGITS = 9  # of a token id

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenId = Count
TopCount = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Seed = Annotated[int, Meta(ge=SEED_RANGE[0], le=SEED_RANGE[1])]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=256)]
ChoiceCount = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options` of a streamed request."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingRequest(StructuredRequest, kw_only=True):
    """The fields of both request types. Beyond OpenAI's: `top_k`, `min_p`, `typical_p`,
    `repetition_penalty`, `allowed_token_ids`, `bad_token_ids`, `min_tokens`, `stop_token_ids`,
    `include_stop_str_in_output`, `ignore_eos`, `priority`, `cache_salt`, `return_token_ids`
    and those of `StructuredRequest`."""

    model: str
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_token_ids: list[TokenId] | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    priority: Priority | None = None
    cache_salt: CacheSalt | None = None
    return_token_ids: bool | None = None
    n: ChoiceCount | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=MAX_BIASES)] | None = None


class PromptTokensDetails(msgspec.Struct):
    """`cached_tokens` of the prompt were found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    """`reasoning_tokens` of the generated ones were thinking, marks of its ends included."""

    reasoning_tokens: int


class Usage(msgspec.Struct):
    """Token counts of an answer; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int = 0
) -> Usage:
    """The counts with their sum."""
    return Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptTokensDetails(cached_tokens),
        CompletionTokensDetails(reasoning_tokens),
    )


def new_id(prefix: str) -> str:
    """A fresh id of an answer, such as `cmpl-...`."""
    return f"{prefix}-{uuid4().hex}"


def refuse_unsupported(
    fields: object, neutral_values: Mapping[str, tuple[object, ...]], within: str = ""
) -> None:
    """Refuse known fields that ask for something not supported yet.

    `within` is the path of `fields` in the request, up to and with the dot.

    Raises:
        RequestError: naming the first such field.
    """
    for name, neutral in neutral_values.items():
        if getattr(fields, name) not in neutral:
            param = within + name
            raise RequestError(f"{param} is not supported yet; leave it out", param=param)


def check_common(request: SamplingRequest) -> None:
    """Checks of both request types that its field types do not express.

    Raises:
        RequestError: `stream_options` without `stream`.
    """
    if request.stream_options is not None and not request.stream:
        message = "stream_options is only allowed together with stream: true"
        raise RequestError(message, param="stream_options")


def includes_usage(request: SamplingRequest) -> bool:
    """Whether a stream is to end with a chunk of token counts."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def is_obfuscated(request: SamplingRequest) -> bool:
    """Whether the sizes of a stream's chunks are to tell nothing of the tokens in them."""
    return request.stream_options is not None and bool(request.stream_options.include_obfuscation)


def place_of(request: SamplingRequest) -> tuple[int, str]:
    """Priority and cache salt."""
    return request.priority or 0, request.cache_salt or ""


def choice_params(
    request: SamplingRequest,
    defaults: GenerationDefaults,
    max_tokens: int,
    vocab_size: int,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
    thinking: Thinking | None = None,
    count: int | None = None,
) -> list[SamplingParams]:
    """Parameters of each choice: the request's, else the checkpoint's, else OpenAI's.

    There are `n` of them, or `count`.

    Choice k of a seeded request is sampled with seed + k, so choice 0 is what n=1 gives.

    Raises:
        RequestError: a value outside its range, or a token id outside the vocabulary.
    """
    first = SamplingParams(
        max_tokens=max_tokens,
        temperature=_first_given(request.temperature, defaults.temperature, 1.0),
        top_p=_first_given(request.top_p, defaults.top_p, 1.0),
        top_k=_first_given(request.top_k, defaults.top_k, 0),
        min_p=_first_given(request.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first_given(
            request.repetition_penalty, defaults.repetition_penalty, 1.0
        ),
        typical_p=_first_given(request.typical_p, None, 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_biases(request.logit_bias or {}),
        allowed_token_ids=(
            None if request.allowed_token_ids is None else _distinct(request.allowed_token_ids)
        ),
        bad_token_ids=_distinct(request.bad_token_ids),
        min_tokens=request.min_tokens or 0,
        seed=request.seed,
        stop=_stop_strings(request.stop),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        stop_token_ids=_distinct(request.stop_token_ids),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        thinking=thinking,
    )
    # The engine checks the same, but not an endless list is to take up the pipe to it.
    check_token_ids(first, vocab_size)
    choices = range(request.n or 1 if count is None else count)
    if first.seed is None:
        return [first for _ in choices]
    return [replace(first, seed=_wrapped(first.seed + k)) for k in choices]


def _first_given(given: T | None, default: T | None, otherwise: T) -> T:
    if given is not None:
        return given
    return otherwise if default is None else default


def _distinct(token_ids: list[int] | None) -> tuple[int, ...]:
    return tuple(dict.fromkeys(token_ids or ()))


def _biases(logit_bias: Mapping[str, float]) -> dict[int, float]:
    """With the token ids as numbers, which JSON's keys cannot be."""
    biases = {}
    for key, bias in logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _MOST_DIGITS):
            raise RequestError(
                f"logit_bias maps token ids to numbers, but {key!r} is no token id",
                param="logit_bias",
            )
        biases[int(key)] = bias
    return biases


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _wrapped(seed: int) -> int:
    """`seed` modulo 2**64, in the range of a signed 64-bit integer."""
    low, _ = SEED_RANGE
    return (seed - low) % 2**64 + low
