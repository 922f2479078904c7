"""Tool calls in a model's text: what all formats share.

A call stands between `<tool_call>` and `</tool_call>`; what is inside is up to the format. A
block that the format cannot read, or that calls a function nobody declared, is text like any other.
"""

from __future__ import annotations

from typing import Protocol

from qwell.server.answer.reading import Content, Reader, Source, overlap

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


class CallFormat(Protocol):
    """A format of calls, for some declared functions.

    Attributes:
        starts: what a call may begin with where the model has left out the opening tag.
    """

    starts: tuple[str, ...]

    def read_call(self, source: Source) -> Reader[bool]:
        """Read a call that the source begins with, just behind the opening tag.

        The closing tag remains. False, with nothing read, says that there is no call.
        """

    def grammar(self) -> str:
        """Rules of a Lark grammar, of which `call` is a call without the tags around it.

        Raises:
            ValueError: a function has parameters that this format cannot be held to.
        """


def read_calls(source: Source, calls: CallFormat, *, one_only: bool) -> Reader[None]:
    """Read text with calls in it, to the end, or with `one_only` to that of the first call.

    White space before a call, or between the last call and the end, is dropped.
    """
    called = False
    while tag := (yield from _read_text(source, (OPEN, *calls.starts), called)):
        gap = source.take(source.rest.index(tag))
        if tag == OPEN:
            gap += source.take(len(OPEN))
        called = yield from calls.read_call(source)
        if not called:
            yield Content(gap if tag == OPEN else gap + source.take(len(tag)))
        else:
            yield from _skip_close(source)
            if one_only:
                return


def _read_text(source: Source, tags: tuple[str, ...], called: bool) -> Reader[str]:
    """Read text up to white space and one of the tags, which remain; the tag, "" at the end."""
    while True:
        found = ""
        end = len(source.rest) - max(overlap(source.rest, tag) for tag in tags)
        for tag in tags:
            place = source.rest.find(tag)
            if 0 <= place < end:
                end, found = place, tag
        certain = len(source.rest[:end].rstrip())
        if certain:
            called = False
            yield Content(source.take(certain))
        if found:
            return found
        if source.ended:
            rest = source.take(len(source.rest))
            if rest and not called:
                yield Content(rest)
            return ""
        yield None


def _skip_close(source: Source) -> Reader[None]:
    """Past the closing tag, if that is what follows."""
    while True:
        text = source.rest.lstrip()
        if text.startswith(CLOSE):
            source.take(len(source.rest) - len(text) + len(CLOSE))
            return
        if source.ended or overlap(text, CLOSE) < len(text):
            return
        yield None
