"""POST /tokenize and /detokenize: request and response, in the form of vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from qwell.runtime.errors import RequestError

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text to encode as /v1/completions would.

    `add_special_tokens` false leaves out what the tokenizer puts around a text, which is nothing
    with Qwen's own.
    """

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeAnswer(msgspec.Struct, kw_only=True):
    """The ids; `token_strs` are their texts, where asked for, U+FFFD for parts of a character."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Ids to turn into text, control tokens included."""

    model: str | None = None
    tokens: list[TokenId]


class DetokenizeAnswer(msgspec.Struct):
    """The text."""

    prompt: str


def check_in_vocabulary(tokens: Sequence[int], vocab_size: int) -> None:
    """Raises RequestError, which names the place, for an id that the tokenizer does not have."""
    for index, token_id in enumerate(tokens):
        if token_id >= vocab_size:
            raise RequestError(
                f"tokens[{index}] is {token_id}; ids are below {vocab_size}",
                param=f"tokens[{index}]",
            )
