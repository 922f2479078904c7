"""POST /v1/completions: request and response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qwell.runtime.errors import RequestError
from qwell.runtime.messages import FinishReason
from qwell.server.protocol.common import (
    MAX_CHOICES,
    Count,
    SamplingRequest,
    TopCount,
    Usage,
    check_common,
    refuse_unsupported,
)
from qwell.server.protocol.logprobs import CompletionLogprobs

DEFAULT_MAX_TOKENS = 16

MAX_BEST_OF = 20

_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {"suffix": (None, "")}

BestOf = Annotated[int, Meta(ge=0, le=MAX_BEST_OF)]


class CompletionRequest(SamplingRequest, kw_only=True):
    """Every field of OpenAI's, and the additions of `SamplingRequest`."""

    # One list type only: msgspec tells the four forms of OpenAI apart no further than this.
    prompt: str | Annotated[list[str | Count | list[Count]], Meta(min_length=1)]
    echo: bool | None = None
    best_of: BestOf | None = None
    logprobs: TopCount | None = None
    suffix: str | None = None


class CompletionChoice(msgspec.Struct):
    """One choice, or in a stream a piece of it.

    Token ids are there where they are asked for; in a stream those of the prompt come once.
    `stop_reason` is the stop string, or the one of `stop_token_ids`, that has ended the text.
    """

    text: str
    index: int
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    token_ids: Sequence[int] | UnsetType = UNSET
    prompt_token_ids: Sequence[int] | UnsetType = UNSET
    stop_reason: str | int | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A whole answer, or in a stream one chunk of it; both have the same form."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


def check_completion(request: CompletionRequest) -> None:
    """Checks that the field types do not express.

    Raises:
        RequestError: an unsupported field, or fields that contradict each other.
    """
    check_common(request)
    refuse_unsupported(request, _NEUTRAL_VALUES)
    n = request.n or 1
    if request.best_of is not None and request.best_of < n:
        message = f"best_of ({request.best_of}) must be at least n ({n})"
        raise RequestError(message, param="best_of")
    if request.stream and computed_choices(request) > n:
        message = "with best_of above n nothing can be streamed: the best are known at the end"
        raise RequestError(message, param="best_of")


def computed_choices(request: CompletionRequest) -> int:
    """How many choices of each prompt are computed, of which `n` are told."""
    return request.best_of or request.n or 1


def computed_logprobs(request: CompletionRequest) -> int | None:
    """How many likely tokens come with each token; the best choices are found by the chosen."""
    is_ranked = computed_choices(request) > (request.n or 1)
    return 0 if request.logprobs is None and is_ranked else request.logprobs


def prompts_of(request: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts, each a text or token ids, whichever of the four forms they came in.

    Raises:
        RequestError: forms are mixed, or there are too many choices.
    """
    prompts = _listed(request.prompt)
    each = computed_choices(request)
    count = len(prompts) * each
    if count > MAX_CHOICES:
        field = "best_of" if request.best_of else "n"
        raise RequestError(
            f"{len(prompts)} prompts with {field}={each} are {count} choices; at most "
            f"{MAX_CHOICES} are allowed",
            param=field if len(prompts) <= MAX_CHOICES else "prompt",
        )
    return prompts


def _listed(prompt: str | list[str | int | list[int]]) -> Sequence[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    if kinds in ({str}, {list}):
        return cast("list[str] | list[list[int]]", prompt)
    raise RequestError(
        "prompt must be a string, a list of strings, a list of token ids or a list of lists of "
        "token ids, not a mixture",
        param="prompt",
    )
