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

_NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {"suffix": (None, "")}


class CompletionRequest(SamplingRequest, kw_only=True):
    """Every field of OpenAI's, and the additions of `SamplingRequest`."""

    # One list type only: msgspec tells the four forms of OpenAI apart no further than this.
    prompt: str | Annotated[list[str | Count | list[Count]], Meta(min_length=1)]
    echo: bool | None = None
    best_of: Count | None = None
    logprobs: TopCount | None = None
    suffix: str | None = None


class CompletionChoice(msgspec.Struct):
    """One choice, or in a stream a piece of it."""

    text: str
    index: int
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None


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
    if request.best_of is not None and request.best_of != (request.n or 1):
        message = f"best_of other than n ({request.n or 1}) is not supported yet; leave it out"
        raise RequestError(message, param="best_of")


def prompts_of(request: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts, each a text or token ids, whichever of the four forms they came in.

    Raises:
        RequestError: forms are mixed, or there are too many choices.
    """
    prompts = _listed(request.prompt)
    count = len(prompts) * (request.n or 1)
    if count > MAX_CHOICES:
        raise RequestError(
            f"{len(prompts)} prompts with n={request.n or 1} are {count} choices; at most "
            f"{MAX_CHOICES} are allowed",
            param="n" if len(prompts) <= MAX_CHOICES else "prompt",
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
