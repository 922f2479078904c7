"""Answers that are held to a format: calls that have to be, and calls that have to be right."""

from __future__ import annotations

from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import Grammar
from qwell.server.answer.lark import lark_text
from qwell.server.answer.tool_calls import CLOSE, OPEN, CallFormat
from qwell.server.protocol.tools import ToolUse

# Text up to a call, and text after the last one.
_FREE_TEXT = rf"""
opening[lazy]: /(?s:.*){OPEN}/
rest: TEXT
TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/
"""


def call_grammar(calls: CallFormat, tools: ToolUse) -> Grammar | None:
    """What an answer has to be; None where it may be anything.

    An answer that has to call consists of calls. One that may is free but for calls themselves,
    if any function is strict.

    Raises:
        RequestError: a function has parameters that the format cannot be held to.
    """
    if not tools.must_call and not any(function.strict for function in tools.functions):
        return None
    try:
        rules = calls.grammar()
    except ValueError as error:
        raise RequestError(f"{tools.param}: {error}", param=tools.param) from error
    close = lark_text(CLOSE)
    if tools.must_call:
        block = f"block: {lark_text(OPEN)} call {close}"
        start = "start: block" if tools.one_call else 'start: block ("\\n" block)*'
        return Grammar("lark", f"{start}\n{block}\n{rules}\n")
    start = f"start: (opening call {close}){'?' if tools.one_call else '*'} rest"
    return Grammar("lark", f"{start}{_FREE_TEXT}{rules}\n")
