"""The chat format of the first Qwen generation, which ships as code rather than as a template.

    <|im_start|>system\\nTEXT<|im_end|>\\n<|im_start|>user\\nTEXT<|im_end|>\\n<|im_start|>assistant\\n

Roles, line breaks and texts are encoded each on its own, so no token reaches across them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwell.runtime.errors import CheckpointError, RequestError
from qwell.runtime.tokenizer import Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
ROLES = ("system", "user", "assistant")


class FirstGenerationChat:
    """Built-in ChatML. Control tokens in a message are plain text; history is never dropped.

    A conversation that does not begin with a system message gets the default one.
    """

    variables = frozenset({"messages"})
    source = ""

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,  # noqa: ARG002 - a format without settings
    ) -> list[int]:
        """Prompt ids of a conversation.

        Raises:
            RequestError: no message, a role or content the format cannot express, or tools.
            CheckpointError: the tokenizer lacks the ChatML control tokens.
        """
        if tools:
            raise RequestError("this model's chat format has no tools", param="tools")
        turns = [_role_and_text(message, index) for index, message in enumerate(messages)]
        if not turns:
            raise RequestError("messages must hold at least one message", param="messages")
        if turns[0][0] != "system":
            turns.insert(0, ("system", DEFAULT_SYSTEM))
        start = _control_id(tokenizer, "<|im_start|>")
        end = _control_id(tokenizer, "<|im_end|>")
        newline = tokenizer.encode("\n")
        ids: list[int] = []
        for role, text in turns:
            body = tokenizer.encode(text, parse_special=False)
            ids += [start, *tokenizer.encode(role), *newline, *body, end, *newline]
        if add_generation_prompt:
            return [*ids, start, *tokenizer.encode("assistant"), *newline]
        return ids[: -len(newline)]


def _role_and_text(message: Mapping[str, Any], index: int) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RequestError(
            f"messages[{index}].role must be one of {', '.join(ROLES)}, got {role!r}",
            param="messages",
        )
    if not isinstance(content, str):
        raise RequestError(
            f"messages[{index}].content must be a string, got {type(content).__name__}",
            param="messages",
        )
    return role, content


def _control_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_id(token)
    if token_id is None:
        raise CheckpointError(f"the tokenizer has no token {token}, which this chat format needs")
    return token_id
