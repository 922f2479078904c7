"""What the readers of a model's answer share: the text that has come, and the pieces made of it.

A reader is a generator. It takes from a `Source` what is certain, yields it as pieces, and yields
None where it needs more text; so it reads like a parser of a whole text, and works on any part.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Content(NamedTuple):
    """Text for the user."""

    text: str


class Reasoning(NamedTuple):
    """Text that the model thinks in."""

    text: str


class CallBegin(NamedTuple):
    """A call of the function `name`; its arguments follow."""

    name: str


class CallArguments(NamedTuple):
    """A part of the JSON text of the current call's arguments."""

    text: str


class CallEnd(NamedTuple):
    """The arguments of the current call are all there."""


Piece = Content | Reasoning | CallBegin | CallArguments | CallEnd
Reader = Generator[Piece | None, None, T]


class Source:
    """Text that is appended to at its end and read from its beginning.

    Attributes:
        rest: what has come and is not read yet.
        taken: how many characters have been read.
        ended: no more text comes.
    """

    def __init__(self) -> None:
        self.rest = ""
        self.taken = 0
        self.ended = False

    def take(self, count: int) -> str:
        """Read the next characters."""
        text, self.rest = self.rest[:count], self.rest[count:]
        self.taken += len(text)
        return text


def read_until(
    source: Source, tag: str, piece: Callable[[str], Piece], *, line_breaks: int
) -> Reader[bool]:
    """Read the text before `tag`, and the tag; false where the text ends without it.

    Up to so many line breaks in front of the tag belong to it.
    """
    while True:
        end = source.rest.find(tag)
        if end >= 0:
            text = source.take(end + len(tag))[:end]
            if text := text[: len(text) - _breaks_at_end(text, line_breaks)]:
                yield piece(text)
            return True
        certain = len(source.rest)
        if not source.ended:
            certain -= overlap(source.rest, tag)
            certain -= _breaks_at_end(source.rest[:certain], line_breaks)
        if text := source.take(certain):
            yield piece(text)
        if source.ended:
            return False
        yield None


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`, not whole yet."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def _breaks_at_end(text: str, at_most: int) -> int:
    return min(len(text) - len(text.rstrip("\n")), at_most)
