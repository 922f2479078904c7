"""Qwen's thinking: `<think>\\nTEXT\\n</think>\\n\\n` in front of the answer proper."""

from __future__ import annotations

from qwell.server.answer.reading import Reader, Reasoning, Source, overlap, read_until

OPEN = "<think>"
CLOSE = "</think>"


def read_reasoning(source: Source, *, opened: bool) -> Reader[None]:
    """Read the thinking that the text begins with, if any; unclosed thinking reaches to the end.

    The line breaks around it belong to the tags, as in Qwen's chat templates. `opened` says that
    the prompt ends with the opening tag, and so the text begins within.
    """
    if not opened and not (yield from _read_open(source)):
        return
    yield from _skip_line_breaks(source)
    if (yield from read_until(source, CLOSE, Reasoning, line_breaks=2)):
        yield from _skip_line_breaks(source)


def _read_open(source: Source) -> Reader[bool]:
    while True:
        text = source.rest.lstrip()
        if text.startswith(OPEN):
            source.take(len(source.rest) - len(text) + len(OPEN))
            return True
        if source.ended or overlap(text, OPEN) < len(text):
            return False
        yield None


def _skip_line_breaks(source: Source) -> Reader[None]:
    while True:
        text = source.rest.lstrip("\n")
        source.take(len(source.rest) - len(text))
        if text or source.ended:
            return
        yield None
