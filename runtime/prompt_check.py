"""Whether a model can take a prompt at all."""

from __future__ import annotations

from collections.abc import Sequence

from qwell.runtime.errors import RequestError


def check_prompt(
    prompt_ids: Sequence[int], max_tokens: int, vocab_size: int, max_model_len: int
) -> None:
    """Refuse a prompt that is empty, of unknown ids, or too long with `max_tokens` behind it.

    Raises:
        RequestError: naming the field to blame.
    """
    if not prompt_ids:
        raise RequestError("the prompt is empty; it must have at least one token")
    for token_id in prompt_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"the prompt holds the token id {token_id}; ids must be in 0..{vocab_size - 1}",
                param="prompt",
            )
    total = len(prompt_ids) + max_tokens
    if total > max_model_len:
        raise RequestError(
            # Clients that see no code know it by the first words.
            f"this model's maximum context length is {max_model_len} tokens, but {total} were "
            f"asked for ({len(prompt_ids)} in the prompt, {max_tokens} for the completion)",
            param="max_tokens" if len(prompt_ids) < max_model_len else "prompt",
            code="context_length_exceeded",
        )
