"""Log-probabilities on the wire: the shapes of completions and of chat."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import msgspec

from qwell.runtime.messages import TokenLogprob
from qwell.runtime.tokenizer import Tokenizer
from qwell.server.generation import ScoredToken

# JSON has no infinity; clients know this one from other servers.
_LEAST = -9999.0


class CompletionLogprobs(msgspec.Struct):
    """Of the tokens of a completion, or of a piece of it.

    The first token of an echoed prompt has null for both kinds of log-probabilities. Offsets count
    characters from the beginning of the choice's text.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    def __add__(self, other: CompletionLogprobs) -> CompletionLogprobs:
        return CompletionLogprobs(
            self.tokens + other.tokens,
            self.token_logprobs + other.token_logprobs,
            self.top_logprobs + other.top_logprobs,
            self.text_offset + other.text_offset,
        )


class CompletionScores:
    """Makes them piece by piece, as tokens come."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0, *, skip_special: bool = True) -> None:
        """Of text that begins at `offset`; control tokens add none of it with `skip_special`."""
        self._tokenizer = tokenizer
        self._offset = offset
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def piece(self, tokens: Sequence[ScoredToken]) -> CompletionLogprobs:
        """Those of the tokens that follow the ones before."""
        piece = CompletionLogprobs([], [], [], [])
        for token_id, score in tokens:
            piece.tokens.append(self._text(token_id))
            piece.text_offset.append(self._advance(token_id))
            if score is None:
                piece.token_logprobs.append(None)
                piece.top_logprobs.append(None)
            else:
                chosen = max(score.logprob, _LEAST)
                piece.token_logprobs.append(chosen)
                top = {self._text(i): max(logprob, _LEAST) for i, logprob in score.top}
                # The token itself is always among them, as in OpenAI's answers.
                piece.top_logprobs.append({**top, self._text(token_id): chosen})
        return piece

    def _advance(self, token_id: int) -> int:
        """Where a token's text begins, or the character that it is a part of."""
        begin = self._offset
        if token_id in self._skipped:
            return begin
        data = self._tokenizer.token_bytes(token_id)
        self._offset += len(self._decoder.decode(data))
        whole = data.decode("utf-8", errors="ignore")
        # A whole text also ends a character before it that has remained unfinished.
        return self._offset - len(whole) if whole.encode() == data else begin

    def _text(self, token_id: int) -> str:
        data = self._tokenizer.token_bytes(token_id)
        text = data.decode("utf-8", errors="backslashreplace")
        # A part of a character is shown by its bytes, with the mark that OpenAI has for it.
        return text if text.encode() == data else f"bytes:{text}"


class TopLogprob(msgspec.Struct):
    """A likely token in place of the one generated. `bytes` are those of its UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A generated token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Of the tokens of an answer, or of a piece of it."""

    content: list[ChatLogprob]
    refusal: None = None


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[ScoredToken]) -> ChatLogprobs:
    """Those of tokens that have a score."""

    def likely(token_id: int, logprob: float) -> tuple[str, float, list[int]]:
        data = tokenizer.token_bytes(token_id)
        text = data.decode("utf-8", errors="backslashreplace")
        return text, max(logprob, _LEAST), list(data)

    def scored(token_id: int, score: TokenLogprob) -> ChatLogprob:
        top = [TopLogprob(*likely(*entry)) for entry in score.top]
        return ChatLogprob(*likely(token_id, score.logprob), top)

    return ChatLogprobs([scored(token_id, score) for token_id, score in tokens if score])
