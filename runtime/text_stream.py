"""From the ids of one completion to the text that may be shown, piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from qwell.runtime.tokenizer import Tokenizer


class TextStream:
    """Incremental detokeniser with stop strings.

    What `push` returns is certain: whole characters, and nothing that may turn out to be the
    start of a stop string. Without a stop match all pieces together, `finish` included, equal
    `tokenizer.decode` of all ids; control tokens contribute no text.

    The stop string that is complete first, reading character by character, ends the text; of
    several that end at the same character the longest counts. The text before it is kept, so
    the result does not depend on how the text was cut into tokens.

    Stop strings must not be empty. With `include_stop` the one that ended the text is part of it.

    Attributes:
        stopped: a stop string was found; it and everything behind it is dropped.
        stop_string: the one that was found, else "".
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), include_stop: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matchers = [_StopMatcher(string) for string in stop]
        self._include_stop = include_stop
        self._held = ""
        self.stopped = False
        self.stop_string = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these ids made certain; "" once stopped."""
        tokenizer = self._tokenizer
        special = tokenizer.special_ids
        data = b"".join([tokenizer.token_bytes(i) for i in token_ids if i not in special])
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """The held-back rest, when no more ids follow; "" once stopped.

        An unfinished character comes as U+FFFD.
        """
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._matchers:
            return text
        seen = len(self._held)
        text = self._held + text
        for end in range(seen + 1, len(text) + 1):
            # Every matcher has to see the character, so no short-circuit here.
            complete = [matcher.feed(text[end - 1]) for matcher in self._matchers]
            if any(complete):
                self.stopped = True
                self._held = ""
                begin = end - max(complete)
                self.stop_string = text[begin:end]
                return text[:end] if self._include_stop else text[:begin]
        certain = len(text) - max(matcher.matched for matcher in self._matchers)
        self._held = text[certain:]
        return text[:certain]


class _StopMatcher:
    """Knuth-Morris-Pratt search for one string: time is linear in the text, whatever the string.

    `matched` is the length of the longest start of the string that the text so far ends with.
    """

    def __init__(self, string: str) -> None:
        self._string = string
        self._shorter = _borders(string)
        self.matched = 0

    def feed(self, char: str) -> int:
        """Length of the stop string if `char` completes it, else 0. Not to be fed further then."""
        self.matched = _extend(self._string, self._shorter, self.matched, char)
        return self.matched if self.matched == len(self._string) else 0


def _borders(string: str) -> list[int]:
    """For every start of `string`, the length of the longest shorter start that it ends with."""
    borders = [0]
    for char in string[1:]:
        borders.append(_extend(string, borders, borders[-1], char))
    return borders


def _extend(string: str, borders: list[int], matched: int, char: str) -> int:
    while matched and string[matched] != char:
        matched = borders[matched - 1]
    return matched + 1 if string[matched] == char else 0
