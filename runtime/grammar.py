"""What the text of a completion is to look like: a schema, an expression, choices or a grammar.

Torch-free, and llguidance is only loaded when a grammar is used: `grammar_check.py` checks
grammars for the server, the engine enforces them (`constraint.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from qwell.runtime.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

GrammarKind = Literal["json_schema", "regex", "choice", "lark", "gbnf"]

MAX_GRAMMAR_BYTES = 1 << 16
# It is translated by Python code that takes time by the square of the number of rules.
MAX_GBNF_BYTES = 1 << 13
# Between two parts of a JSON text. Models that may go on with blanks for ever sometimes do.
_JSON_BLANKS = r"[ \n\r\t]{1,20}"


@dataclass(frozen=True)
class Grammar:
    """All of a completion's text matches it, up to where the completion is cut off.

    Attributes:
        kind: what `text` is: a JSON schema (keywords that llguidance lacks are refused), a
            regular expression (of Rust's regex crate, for the whole text), a JSON list of the
            texts to choose from, a grammar in llguidance's dialect of Lark, or in llama.cpp's GBNF.
        text: 64 KiB at most as UTF-8, of GBNF 8 KiB.
    """

    kind: GrammarKind
    text: str

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of these texts."""
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))


ANY_JSON_OBJECT = Grammar("json_schema", '{"type": "object"}')


def check_grammar(grammar: Grammar) -> None:
    """Compile a grammar to see that it is one.

    Most take a millisecond, but some that strangers may send take minutes, or end the process:
    those are for `grammar_check.py`.

    Raises:
        RequestError: it is too long, not of its kind, or asks for too much.
    """
    problem = problem_of(grammar)
    if problem:
        raise unusable(problem)


def unusable(problem: str, param: str = "grammar") -> RequestError:
    """The error for a grammar with this problem; `param` is the field that it came in."""
    return RequestError(f"{param} cannot be used: {problem}", param=param)


def problem_of(grammar: Grammar) -> str:
    """What is wrong with a grammar, "" if nothing is."""
    from llguidance import LLMatcher

    try:
        matcher = LLMatcher(_bytes(), llguidance_text(grammar), log_level=0, limits=limits())
    except ValueError as error:
        return str(error)
    # Some grammars are seen to be none when their first byte is wanted.
    matcher.compute_bitmask()
    return error_of(matcher.get_error())


def llguidance_text(grammar: Grammar) -> str:
    """`grammar` as llguidance takes it. Raises ValueError for what cannot be one."""
    from llguidance import LLMatcher, grammar_from

    size = len(grammar.text.encode())
    most = MAX_GBNF_BYTES if grammar.kind == "gbnf" else MAX_GRAMMAR_BYTES
    if size > most:
        raise ValueError(f"it has {size} bytes; at most {most} are allowed")
    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(
            grammar.text, overrides={"whitespace_pattern": _JSON_BLANKS}
        )
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(_lark_texts(grammar.text)))
    if grammar.kind == "gbnf":
        # Blank lines mean nothing, but take the translator time by the square of their number.
        lines = [line for line in grammar.text.splitlines() if line.strip()]
        return grammar_from("gbnf", "\n".join(lines))
    if grammar.kind != "lark":
        kinds = ", ".join(get_args(GrammarKind))
        raise ValueError(f"its kind is {grammar.kind!r}; there are {kinds}")
    return LLMatcher.grammar_from_lark(grammar.text)


def lark_text(text: str) -> str:
    """What stands for this very text in llguidance's dialect of Lark."""
    # JSON lets DEL stand as it is, Lark does not.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def _lark_texts(text: str) -> list[str]:
    try:
        choices = json.loads(text)
    except RecursionError as error:
        raise ValueError("choices are texts, not nested lists") from error
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
        raise ValueError("choices are a list of at least one text")
    return [lark_text(choice) for choice in choices]


def error_of(message: str) -> str:
    """llguidance's message without the mark of details left out."""
    return message.replace("<non-verbose/>", "").strip()


@cache
def limits() -> LLParserLimits:
    """Bounds of what a grammar may take: each keeps a mask's computation within some 50 ms.

    A state of the lexer has 1 to 2 kB: a sequence may take some 30 MB. Messages do not tell the
    text so far.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=20_000, verbose_errors=False)


@cache
def _bytes() -> LLTokenizer:
    """A vocabulary of single bytes: what a grammar allows does not depend on how text is cut."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_ByteVocabulary()), slices=[])


class _ByteVocabulary:
    """As TokenizerWrapper takes it."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)
