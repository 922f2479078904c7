"""The block in which a model thinks before it answers, as far as sampling is concerned."""

from __future__ import annotations

from dataclasses import dataclass


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
