"""What the clients ask: prompts of random lengths, conversations, text that repeats itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Dataset = Literal["random", "chat", "repetitive"]

# Ids that every vocabulary has.
_IDS = 256
_PHRASE_TOKENS = 24
# Common words are one token each, with the space before them, in the vocabularies of Qwen.
_COMMON = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line"
)
_WORDS = tuple(_COMMON.split())


@dataclass(frozen=True)
class Turn:
    """What a user says, and how long the answer is to be.

    Attributes:
        ids: the same length as token ids, for servers that take them; empty in conversations,
            which go on from the server's own text.
    """

    text: str
    ids: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class Conversation:
    """Turns that follow each other, each once the one before is answered."""

    system: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Lengths:
    """Of prompts and answers in tokens, each drawn evenly from (1 - spread) to (1 + spread) of it.

    Attributes:
        system: tokens of the system prompt that all conversations begin with.
        turns: of a conversation.
    """

    input_tokens: int = 128
    output_tokens: int = 64
    spread: float = 0.0
    system_tokens: int = 512
    turns: int = 3


def conversations(dataset: Dataset, lengths: Lengths, count: int, seed: str) -> list[Conversation]:
    """`count` of them; the same seed, the same words."""
    draw = random.Random(seed)
    if dataset == "chat":
        system = _text(draw, lengths.system_tokens)
        return [_chat(draw, lengths, system) for _ in range(count)]
    unit = _PHRASE_TOKENS if dataset == "repetitive" else None
    return [Conversation("", (_turn(draw, lengths, unit),)) for _ in range(count)]


def _chat(draw: random.Random, lengths: Lengths, system: str) -> Conversation:
    turns = []
    for _ in range(lengths.turns):
        text = _text(draw, _length(draw, lengths.input_tokens, lengths.spread))
        turns.append(Turn(text, (), _length(draw, lengths.output_tokens, lengths.spread)))
    return Conversation(system, tuple(turns))


def _turn(draw: random.Random, lengths: Lengths, unit: int | None) -> Turn:
    size = _length(draw, lengths.input_tokens, lengths.spread)
    unit = size if unit is None else min(unit, size)
    ids = [draw.randrange(_IDS) for _ in range(unit)]
    words = _text(draw, unit).split()
    return Turn(
        text=" ".join(_repeated(words, size)),
        ids=tuple(_repeated(ids, size)),
        output_tokens=_length(draw, lengths.output_tokens, lengths.spread),
    )


def _repeated(unit: Sequence, size: int) -> list:
    return [unit[place % len(unit)] for place in range(size)]


def _text(draw: random.Random, tokens: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(tokens))


def _length(draw: random.Random, tokens: int, spread: float) -> int:
    return max(1, round(draw.uniform(1 - spread, 1 + spread) * tokens))
