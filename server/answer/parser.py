"""From the text of an answer to its pieces: thinking, content and tool calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwell.server.answer.reading import CallArguments, Content, Piece, Reader, Reasoning, Source
from qwell.server.answer.reasoning import read_reasoning
from qwell.server.answer.tool_calls import CallFormat, read_calls

# Of a long text that comes at once, so that what is left of it is not copied over and over.
_SLICE = 4096


@dataclass(frozen=True)
class AnswerForm:
    """What to look for in an answer. With all defaults every text is content.

    Attributes:
        thinks: the answer may begin with thinking.
        thinking_opened: and begins within, since the prompt ends with the opening tag.
        calls: the format of tool calls; None where there are none.
        one_call: the answer ends with its first call; what follows is dropped.
    """

    thinks: bool = False
    thinking_opened: bool = False
    calls: CallFormat | None = None
    one_call: bool = False


class AnswerParser:
    """Takes text as it comes. All pieces together do not depend on where it was cut.

    Attributes:
        thought_chars: how many characters thinking took up, its tags included; 0 until the
            thinking or the text has ended.
        is_over: the only call that there is to be has come; more text is dropped.
    """

    def __init__(self, form: AnswerForm) -> None:
        self.thought_chars = 0
        self.is_over = False
        self._source = Source()
        self._reader = self._read(form)

    def push(self, text: str) -> list[Piece]:
        """The pieces that this text made certain."""
        pieces: list[Piece] = []
        for begin in range(0, len(text), _SLICE):
            self._source.rest += text[begin : begin + _SLICE]
            pieces += self._advance()
        return pieces

    def finish(self) -> list[Piece]:
        """The rest, when no more text follows."""
        self._source.ended = True
        return self._advance()

    def _advance(self) -> list[Piece]:
        pieces: list[Piece] = []
        # None says that the reader needs more text; it also stands for one that is at its end.
        while (piece := next(self._reader, None)) is not None:
            pieces[-1:] = _joined(pieces[-1], piece) if pieces else [piece]
        return pieces

    def _read(self, form: AnswerForm) -> Reader[None]:
        source = self._source
        if form.thinks:
            yield from read_reasoning(source, opened=form.thinking_opened)
        self.thought_chars = source.taken
        if form.calls is not None:
            yield from read_calls(source, form.calls, one_only=form.one_call)
            self.is_over = form.one_call
        while not source.ended or source.rest:
            text = source.take(len(source.rest))
            yield Content(text) if text and not self.is_over else None


def end_of_answer(form: AnswerForm) -> Callable[[str], bool] | None:
    """Takes the text of one answer as it comes; true once no more of it is wanted.

    None where all of an answer is wanted, however long it gets.
    """
    if form.calls is None or not form.one_call:
        return None
    parser = AnswerParser(form)

    def is_over(text: str) -> bool:
        parser.push(text)
        return parser.is_over

    return is_over


def _joined(first: Piece, second: Piece) -> list[Piece]:
    """Both as one piece where they are text of one kind."""
    for kind in (Content, Reasoning, CallArguments):
        if isinstance(first, kind) and isinstance(second, kind):
            return [kind(first.text + second.text)]
    return [first, second]
