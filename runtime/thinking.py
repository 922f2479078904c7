"""The block in which a model thinks before it answers, as far as sampling is concerned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwell.runtime.errors import RequestError

if TYPE_CHECKING:
    from qwell.runtime.tokenizer import Tokenizer

_CLOSE = "\n</think>\n\n"


@dataclass(frozen=True)
class Thinking:
    """A completion may begin with a block of thoughts; a grammar is for what follows it.

    Attributes:
        start_id, end_id: ids of the marks, `<think>` and `</think>`.
        opened: the prompt ends inside the block. Otherwise the first token may open it.
        budget: most tokens in the block, its marks not counted; None is no limit.
        close_ids: what is written when the budget is spent; `end_id` is among them. What follows
            that id is also written, if a grammar follows, where the model ends the block itself.
    """

    start_id: int
    end_id: int
    opened: bool
    budget: int | None
    close_ids: tuple[int, ...]


def thinking_of(
    prompt_ids: Sequence[int], tokenizer: Tokenizer, budget: int | None = None
) -> Thinking | None:
    """How a chat model goes on after this prompt; None where it is not to think.

    Raises:
        RequestError: there is a budget, but the model has no marks for thoughts.
    """
    start_id, end_id = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    if start_id is None or end_id is None:
        if budget is not None:
            raise RequestError(
                "this model has no <think> and </think>; leave thinking_budget out",
                param="thinking_budget",
            )
        return None
    turn_id = tokenizer.token_id("<|im_start|>")
    marks = (start_id, end_id, turn_id)
    # Of the turn that is to be continued; those before it are no longer of account.
    last = next((token_id for token_id in reversed(prompt_ids) if token_id in marks), None)
    if last == end_id:
        return None
    close_ids = tuple(tokenizer.encode(_CLOSE))
    return Thinking(start_id, end_id, last == start_id, budget, close_ids)
